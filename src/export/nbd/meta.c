/* SPDX-License-Identifier: Apache-2.0
 *
 * Metadata contexts in the negotiation: which ones a client can ask about with
 * NBD_CMD_BLOCK_STATUS. doc/proto.md, "Metadata querying"; for the contexts named
 * "qemu:..." QEMU's docs/interop/nbd.rst.
 */
#include "base/bytes.h"
#include "base/mem.h"
#include "export/nbd/conn.h"

static void reply_context(struct nbd_handshake *hs, uint32_t id, const char *name)
{
    uint8_t data[4 + LIMIT_NBD_STRING_BYTES];
    size_t len = strlen(name);

    store_be32(data, id);
    memcpy(data + 4, name, len);
    nbd_hs_reply(hs, NBD_REP_META_CONTEXT, data, 4 + len);
}

/* The contexts of @e that the queries ask for, by index. @list: name spaces stand
 * for all that is in them, and no query at all for everything. */
static uint64_t find_contexts(const struct nbd_export *e, struct nbd_meta *m, bool list)
{
    uint64_t found = 0;

    if (list && !m->n_queries)
        return UINT64_MAX >> (64 - e->n_contexts);
    for (uint32_t i = 0; i < m->n_queries; i++) {
        struct nbd_str q = nbd_next_query(m);

        for (unsigned j = 0; j < e->n_contexts; j++) {
            const char *name = e->contexts[j].name;

            if (list ? nbd_query_lists(&q, name) : nbd_str_is(&q, name))
                found |= 1ULL << j;
        }
    }
    return found;
}

enum nbd_next nbd_opt_list_meta_context(struct nbd_handshake *hs, const uint8_t *data,
                                        uint32_t len)
{
    const struct nbd_export *e;
    const char *why;
    struct nbd_meta m;

    if (!nbd_get_meta(data, len, &m, &why))
        return nbd_hs_refuse(hs, NBD_REP_ERR_INVALID, "%s", why);
    e = nbd_export_find(hs->conn->exports, &m.name);
    if (!e)
        return nbd_hs_unknown_export(hs, &m.name);
    /* The id "is reserved and SHOULD be set to zero". */
    for (uint64_t left = find_contexts(e, &m, true); left; left &= left - 1)
        reply_context(hs, 0, e->contexts[__builtin_ctzll(left)].name);
    nbd_hs_reply(hs, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_OPTION;
}

enum nbd_next nbd_opt_set_meta_context(struct nbd_handshake *hs, const uint8_t *data, uint32_t len)
{
    struct nbd_conn *c = hs->conn;
    struct nbd_export *e;
    const char *why;
    struct nbd_meta m;

    /* Whatever was selected before is so no more, even if this fails. */
    c->contexts = 0;
    free(MOVE(c->meta_name));
    if (!c->structured)
        return nbd_hs_refuse(hs, NBD_REP_ERR_INVALID,
                             "metadata contexts need structured replies");
    if (!nbd_get_meta(data, len, &m, &why))
        return nbd_hs_refuse(hs, NBD_REP_ERR_INVALID, "%s", why);
    e = nbd_export_find(c->exports, &m.name);
    if (!e)
        return nbd_hs_unknown_export(hs, &m.name);
    c->contexts = find_contexts(e, &m, false);
    c->meta_name = xstrdup(e->name);
    for (uint64_t left = c->contexts; left; left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctzll(left);

        reply_context(hs, i + 1, e->contexts[i].name);
    }
    nbd_hs_reply(hs, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_OPTION;
}
