/* SPDX-License-Identifier: Apache-2.0
 *
 * Metadata contexts in the negotiation: which ones a client can ask about with
 * NBD_CMD_BLOCK_STATUS. There is one, "base:allocation".
 * doc/proto.md, "Metadata querying".
 */
#include "base/bytes.h"
#include "base/mem.h"
#include "export/nbd/conn.h"

static const char base_allocation[] = "base:allocation";

static void add_context(struct nbd_handshake *hs, uint32_t id)
{
    uint8_t data[4 + sizeof(base_allocation) - 1];

    store_be32(data, id);
    memcpy(data + 4, base_allocation, sizeof(base_allocation) - 1);
    nbd_hs_reply(hs, NBD_REP_META_CONTEXT, data, sizeof(data));
}

/* Whether any query names the context; @wildcard: "base:" does as well. */
static bool any_query_matches(struct nbd_meta *m, bool wildcard)
{
    bool found = false;

    for (uint32_t i = 0; i < m->n_queries; i++) {
        struct nbd_str q = nbd_next_query(m);

        found |= nbd_str_is(&q, base_allocation) || (wildcard && nbd_str_is(&q, "base:"));
    }
    return found;
}

enum nbd_next nbd_opt_list_meta_context(struct nbd_handshake *hs, const uint8_t *data,
                                        uint32_t len)
{
    const char *why;
    struct nbd_meta m;

    if (!nbd_get_meta(data, len, &m, &why))
        return nbd_hs_refuse(hs, NBD_REP_ERR_INVALID, "%s", why);
    if (!nbd_export_find(hs->conn->exports, &m.name))
        return nbd_hs_unknown_export(hs, &m.name);
    /* No query asks for all. The id "is reserved and SHOULD be set to zero". */
    if (m.n_queries == 0 || any_query_matches(&m, true))
        add_context(hs, 0);
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
    c->base_allocation = false;
    free(MOVE(c->meta_name));
    if (!c->structured)
        return nbd_hs_refuse(hs, NBD_REP_ERR_INVALID,
                             "metadata contexts need structured replies");
    if (!nbd_get_meta(data, len, &m, &why))
        return nbd_hs_refuse(hs, NBD_REP_ERR_INVALID, "%s", why);
    e = nbd_export_find(c->exports, &m.name);
    if (!e)
        return nbd_hs_unknown_export(hs, &m.name);
    if (any_query_matches(&m, false)) {
        c->base_allocation = true;
        c->meta_name = xstrdup(e->name);
        add_context(hs, NBD_CONTEXT_BASE_ALLOCATION);
    }
    nbd_hs_reply(hs, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_OPTION;
}
