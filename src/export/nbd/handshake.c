/* SPDX-License-Identifier: Apache-2.0
 *
 * Fixed newstyle negotiation, in the order of doc/proto.md: greeting, the
 * client's flags, options one after the other. What an option means is for
 * options.c and meta.c.
 */
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "export/nbd/conn.h"
#include <stdio.h>

/* ---- replies ------------------------------------------------------------ */

void nbd_hs_reply(struct nbd_handshake *hs, uint32_t reply, const void *data, size_t len)
{
    uint8_t head[NBD_OPTION_REPLY_BYTES];

    nbd_put_option_reply(head, hs->option, reply, len);
    strbuf_addn(&hs->out, (const char *)head, sizeof(head));
    if (len)
        strbuf_addn(&hs->out, data, len);
}

enum nbd_next nbd_hs_refuse(struct nbd_handshake *hs, uint32_t error, const char *fmt, ...)
{
    char text[LIMIT_NBD_STRING_BYTES];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    nbd_hs_reply(hs, error, text, strlen(text));
    return NBD_NEXT_OPTION;
}

int co_nbd_hs_flush(struct nbd_handshake *hs)
{
    struct iovec iov = { hs->out.text, hs->out.len };
    int r;

    if (!hs->out.len)
        return 0;
    r = co_stream_writev(hs->conn->stream, &iov, 1);
    hs->out.len = 0;
    return r;
}

/* ---- options ------------------------------------------------------------ */

/* Options longer than any that makes sense. */
static enum nbd_next co_refuse_long(struct nbd_handshake *hs, uint32_t len)
{
    /* EXPORT_NAME has no error reply. */
    if (hs->option == NBD_OPT_EXPORT_NAME || len > LIMIT_NBD_OPTION_SKIP_BYTES)
        return NBD_NEXT_CLOSE;
    if (co_stream_skip(hs->conn->stream, len) < 0)
        return NBD_NEXT_CLOSE;
    return nbd_hs_refuse(hs, nbd_option_handler(hs->option) ? NBD_REP_ERR_TOO_BIG
                                                            : NBD_REP_ERR_UNSUP,
                         "option %u with %u bytes of data is too long", hs->option, len);
}

static enum nbd_next co_handle_option(struct nbd_handshake *hs, uint32_t len)
{
    CLEANUP(free) uint8_t *data = NULL;
    nbd_option_fn *handle = nbd_option_handler(hs->option);

    if (len > LIMIT_NBD_OPTION_BYTES)
        return co_refuse_long(hs, len);
    data = malloc(len + 1);
    if (!data || co_stream_read(hs->conn->stream, data, len) < 0)
        return NBD_NEXT_CLOSE;
    if (!handle)
        return nbd_hs_refuse(hs, NBD_REP_ERR_UNSUP, "option %u is not known here", hs->option);
    return handle(hs, data, len);
}

static enum nbd_next co_next_option(struct nbd_handshake *hs, bool fixed)
{
    uint8_t head[NBD_OPTION_BYTES];
    enum nbd_next next;
    uint32_t len;

    if (co_stream_read(hs->conn->stream, head, sizeof(head)) < 0)
        return NBD_NEXT_CLOSE;
    if (!nbd_get_option(head, &hs->option, &len))
        return NBD_NEXT_CLOSE;
    /* "This is the only valid option in nonfixed newstyle negotiation." */
    if (!fixed && hs->option != NBD_OPT_EXPORT_NAME)
        return NBD_NEXT_CLOSE;
    next = co_handle_option(hs, len);
    if (co_nbd_hs_flush(hs) < 0)
        return NBD_NEXT_CLOSE;
    return next;
}

/* The greeting, and the flags that the client answers with. */
static bool co_greet(struct nbd_handshake *hs, uint32_t *ret_flags)
{
    uint8_t greeting[NBD_GREETING_BYTES], raw[NBD_CLIENT_FLAGS_BYTES];

    nbd_put_greeting(greeting, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    strbuf_addn(&hs->out, (const char *)greeting, sizeof(greeting));
    if (co_nbd_hs_flush(hs) < 0 || co_stream_read(hs->conn->stream, raw, sizeof(raw)) < 0)
        return false;
    *ret_flags = nbd_get_client_flags(raw);
    /* "the server MUST drop the TCP connection if the client sets an unknown flag" */
    return !(*ret_flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
}

bool co_nbd_handshake(struct nbd_conn *c)
{
    struct nbd_handshake hs = { .conn = c, .out = STRBUF_INIT };
    enum nbd_next next = NBD_NEXT_CLOSE;
    uint32_t flags;

    if (co_greet(&hs, &flags)) {
        c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
        do {
            next = co_next_option(&hs, flags & NBD_FLAG_FIXED_NEWSTYLE);
        } while (next == NBD_NEXT_OPTION);
    }
    strbuf_done(&hs.out);
    return next == NBD_NEXT_TRANSMIT;
}
