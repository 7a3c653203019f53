/* SPDX-License-Identifier: Apache-2.0
 *
 * What each option of the negotiation does: one function each, found by table.
 * doc/proto.md, "Option types".
 */
#include "base/bytes.h"
#include "base/limits.h"
#include "export/nbd/conn.h"

/* Replies of one LIST that are gathered before they are sent. */
#define LIST_STEP_BYTES (64 * KiB)

enum nbd_next nbd_hs_unknown_export(struct nbd_handshake *hs, const struct nbd_str *name)
{
    return nbd_hs_refuse(hs, NBD_REP_ERR_UNKNOWN, "export '%.*s' not present", (int)name->len,
                         name->p);
}

/* Options that have no data. */
static bool must_be_empty(struct nbd_handshake *hs, uint32_t len)
{
    if (len)
        (void)nbd_hs_refuse(hs, NBD_REP_ERR_INVALID, "option %u has no data", hs->option);
    return len == 0;
}

static enum nbd_next opt_export_name(struct nbd_handshake *hs, const uint8_t *data, uint32_t len)
{
    uint8_t reply[NBD_EXPORT_REPLY_BYTES_MAX];
    struct nbd_str name = { (const char *)data, len };
    struct nbd_conn *c = hs->conn;
    struct nbd_export *e = NULL;
    size_t n;

    if (len <= LIMIT_NBD_STRING_BYTES)
        e = nbd_export_find(c->exports, &name);
    if (!e)
        return NBD_NEXT_CLOSE;   /* this option has no way to say why */
    nbd_conn_choose(c, e);
    n = nbd_put_export_reply(reply, e->size, nbd_conn_flags(c, e), c->no_zeroes);
    strbuf_addn(&hs->out, (const char *)reply, n);
    return NBD_NEXT_TRANSMIT;
}

static enum nbd_next opt_abort(struct nbd_handshake *hs, const uint8_t *data, uint32_t len)
{
    nbd_hs_reply(hs, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_CLOSE;
}

static void add_server_reply(struct nbd_handshake *hs, const struct nbd_export *e)
{
    size_t name_len = strlen(e->name), description_len = strlen(e->description);
    uint8_t data[4 + 2 * LIMIT_NBD_STRING_BYTES];

    store_be32(data, name_len);
    memcpy(data + 4, e->name, name_len);
    memcpy(data + 4 + name_len, e->description, description_len);
    nbd_hs_reply(hs, NBD_REP_SERVER, data, 4 + name_len + description_len);
}

static enum nbd_next co_opt_list(struct nbd_handshake *hs, const uint8_t *data, uint32_t len)
{
    struct nbd_exports *x = hs->conn->exports;
    struct nbd_export *e;

    if (!must_be_empty(hs, len))
        return NBD_NEXT_OPTION;
    e = nbd_export_first(x);
    while (e) {
        uint64_t seq = e->seq;

        add_server_reply(hs, e);
        if (hs->out.len < LIST_STEP_BYTES) {
            e = nbd_export_next(e);
            continue;
        }
        if (co_nbd_hs_flush(hs) < 0)
            return NBD_NEXT_CLOSE;
        e = nbd_export_after(x, seq);
    }
    nbd_hs_reply(hs, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_OPTION;
}

static enum nbd_next opt_starttls(struct nbd_handshake *hs, const uint8_t *data, uint32_t len)
{
    if (!must_be_empty(hs, len))
        return NBD_NEXT_OPTION;
    return nbd_hs_refuse(hs, NBD_REP_ERR_UNSUP, "this server does not offer TLS");
}

static void add_infos(struct nbd_handshake *hs, const struct nbd_export *e,
                      const struct nbd_go *go)
{
    uint8_t text[2 + LIMIT_NBD_STRING_BYTES];
    uint8_t size[NBD_INFO_EXPORT_BYTES], blocks[NBD_INFO_BLOCK_SIZE_BYTES];

    if (nbd_go_asks(go, NBD_INFO_NAME)) {
        store_be16(text, NBD_INFO_NAME);
        memcpy(text + 2, e->name, strlen(e->name));
        nbd_hs_reply(hs, NBD_REP_INFO, text, 2 + strlen(e->name));
    }
    if (nbd_go_asks(go, NBD_INFO_DESCRIPTION) && *e->description) {
        store_be16(text, NBD_INFO_DESCRIPTION);
        memcpy(text + 2, e->description, strlen(e->description));
        nbd_hs_reply(hs, NBD_REP_INFO, text, 2 + strlen(e->description));
    }
    /* Not only when asked for: clients may ignore it, and few do. */
    nbd_put_info_block_size(blocks, &e->block_sizes);
    nbd_hs_reply(hs, NBD_REP_INFO, blocks, sizeof(blocks));

    nbd_put_info_export(size, e->size, nbd_conn_flags(hs->conn, e));
    nbd_hs_reply(hs, NBD_REP_INFO, size, sizeof(size));
}

static enum nbd_next opt_info_or_go(struct nbd_handshake *hs, const uint8_t *data, uint32_t len)
{
    const char *why;
    struct nbd_export *e;
    struct nbd_go go;

    if (!nbd_get_go(data, len, &go, &why))
        return nbd_hs_refuse(hs, NBD_REP_ERR_INVALID, "%s", why);
    e = nbd_export_find(hs->conn->exports, &go.name);
    if (!e)
        return nbd_hs_unknown_export(hs, &go.name);
    add_infos(hs, e, &go);
    nbd_hs_reply(hs, NBD_REP_ACK, NULL, 0);
    if (hs->option == NBD_OPT_INFO)
        return NBD_NEXT_OPTION;
    nbd_conn_choose(hs->conn, e);
    return NBD_NEXT_TRANSMIT;
}

static enum nbd_next opt_structured_reply(struct nbd_handshake *hs, const uint8_t *data,
                                          uint32_t len)
{
    if (!must_be_empty(hs, len))
        return NBD_NEXT_OPTION;
    hs->conn->structured = true;
    nbd_hs_reply(hs, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_OPTION;
}

static nbd_option_fn *const handlers[] = {
    [NBD_OPT_EXPORT_NAME] = opt_export_name,
    [NBD_OPT_ABORT] = opt_abort,
    [NBD_OPT_LIST] = co_opt_list,
    [NBD_OPT_STARTTLS] = opt_starttls,
    [NBD_OPT_INFO] = opt_info_or_go,
    [NBD_OPT_GO] = opt_info_or_go,
    [NBD_OPT_STRUCTURED_REPLY] = opt_structured_reply,
    [NBD_OPT_LIST_META_CONTEXT] = nbd_opt_list_meta_context,
    [NBD_OPT_SET_META_CONTEXT] = nbd_opt_set_meta_context,
};

nbd_option_fn *nbd_option_handler(uint32_t option)
{
    return option < ARRAY_SIZE(handlers) ? handlers[option] : NULL;
}
