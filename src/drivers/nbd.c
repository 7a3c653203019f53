/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd: a disk that an NBD server has. Options, opening, closing, facts. What a
 * connection is and who keeps it is told in nbd.h.
 */
#include "drivers/nbd.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/nbd_uri.h"
#include <stdio.h>
#include <sys/socket.h>

/* ---- options --------------------------------------------------------------------- */

enum { ADDRESS_INET, ADDRESS_UNIX };

struct inet_options {
    char *host, *port;
    bool has_numeric, numeric;
    bool has_ipv4, ipv4;
    bool has_ipv6, ipv6;
    bool has_keep_alive, keep_alive;
};

struct unix_options {
    char *path;
    bool has_abstract, abstract;
    bool has_tight, tight;
};

struct server_options {
    int type;
    void *branch;
};

struct nbd_options {
    struct server_options server;
    bool has_export;
    char *export;
    bool has_tls_creds;
    char *tls_creds;
    bool has_tls_hostname;
    char *tls_hostname;
    bool has_reconnect_delay;
    uint32_t reconnect_delay;
    bool has_x_dirty_bitmap;
    char *x_dirty_bitmap;
    bool has_open_timeout;
    uint32_t open_timeout;
};

static const struct schema_member inet_members[] = {
    SCHEMA_REQUIRED(struct inet_options, host, "host", &schema_str, "name or address"),
    SCHEMA_REQUIRED(struct inet_options, port, "port", &schema_str, "number or service name"),
    SCHEMA_OPTIONAL(struct inet_options, numeric, "numeric", &schema_bool,
                    "host is an address: do not look it up; default off"),
    SCHEMA_OPTIONAL(struct inet_options, ipv4, "ipv4", &schema_bool, "allow IPv4"),
    SCHEMA_OPTIONAL(struct inet_options, ipv6, "ipv6", &schema_bool, "allow IPv6"),
    SCHEMA_OPTIONAL(struct inet_options, keep_alive, "keep-alive", &schema_bool,
                    "notice a dead connection that is idle; default off"),
    SCHEMA_END,
};
static const struct schema_type inet_type = {
    .name = "InetSocketAddress",
    .kind = SCHEMA_STRUCT,
    .size = sizeof(struct inet_options),
    .members = inet_members,
};

static const struct schema_member unix_members[] = {
    SCHEMA_REQUIRED(struct unix_options, path, "path", &schema_str, "path of the socket"),
    SCHEMA_OPTIONAL(struct unix_options, abstract, "abstract", &schema_bool,
                    "a name without a file (Linux); default off"),
    SCHEMA_OPTIONAL(struct unix_options, tight, "tight", &schema_bool,
                    "an abstract name is not filled up with NULs; default on"),
    SCHEMA_END,
};
static const struct schema_type unix_type = {
    .name = "UnixSocketAddress",
    .kind = SCHEMA_STRUCT,
    .size = sizeof(struct unix_options),
    .members = unix_members,
};

static const char *const address_names[] = { "inet", "unix", NULL };
static const struct schema_type address_type = {
    .name = "SocketAddressType",
    .kind = SCHEMA_ENUM,
    .size = sizeof(int),
    .values = address_names,
};

static const struct schema_type *server_branch(const char *type)
{
    return strcmp(type, "inet") == 0 ? &inet_type : strcmp(type, "unix") == 0 ? &unix_type : NULL;
}

static const char *server_branch_name(unsigned i)
{
    return i < ARRAY_SIZE(address_names) ? address_names[i] : NULL;
}

static const struct schema_member server_members[] = {
    SCHEMA_REQUIRED(struct server_options, type, "type", &address_type, "kind of socket"),
    SCHEMA_END,
};
static const struct schema_type server_type = {
    .name = "SocketAddress",
    .kind = SCHEMA_UNION,
    .size = sizeof(struct server_options),
    .members = server_members,
    .tag = "type",
    .branch = server_branch,
    .branch_name = server_branch_name,
    .branch_offset = offsetof(struct server_options, branch),
};

static const struct schema_member nbd_members[] = {
    SCHEMA_REQUIRED(struct nbd_options, server, "server", &server_type, "where the server is"),
    SCHEMA_OPTIONAL(struct nbd_options, export, "export", &schema_str,
                    "name of the export; default: the server's default export"),
    SCHEMA_OPTIONAL(struct nbd_options, tls_creds, "tls-creds", &schema_str, "not supported yet"),
    SCHEMA_OPTIONAL(struct nbd_options, tls_hostname, "tls-hostname", &schema_str,
                    "not supported yet"),
    SCHEMA_OPTIONAL(struct nbd_options, reconnect_delay, "reconnect-delay", &schema_uint32,
                    "seconds that requests wait for a lost server to come back, trusting that "
                    "it still has what it acknowledged; default 0: they fail"),
    SCHEMA_OPTIONAL(struct nbd_options, x_dirty_bitmap, "x-dirty-bitmap", &schema_str,
                    "a metadata context such as qemu:dirty-bitmap:NAME, whose bits are told as "
                    "block status in place of base:allocation's; default: none"),
    SCHEMA_OPTIONAL(struct nbd_options, open_timeout, "open-timeout", &schema_uint32,
                    "seconds to go on trying while the server cannot be reached; default 0"),
    SCHEMA_END,
};
static const struct schema_type nbd_options_type = {
    .name = "BlockdevOptionsNbd",
    .kind = SCHEMA_STRUCT,
    .doc = "a disk that an NBD server has",
    .size = sizeof(struct nbd_options),
    .members = nbd_members,
};

/* As QEMU (util/qemu-sockets.c, inet_ai_family_from_address): what is not mentioned
 * is allowed unless the other one is asked for by "on". */
static bool choose_family(const struct inet_options *o, int *ret, struct err *err)
{
    bool v4 = o->has_ipv4 ? o->ipv4 : !(o->has_ipv6 && o->ipv6);
    bool v6 = o->has_ipv6 ? o->ipv6 : !(o->has_ipv4 && o->ipv4);

    if (!v4 && !v6)
        return err_set(err, -EINVAL, "Cannot disable IPv4 and IPv6 at same time");
    *ret = v4 && v6 ? AF_UNSPEC : v4 ? AF_INET : AF_INET6;
    return true;
}

static bool set_address(struct nbd_address *a, const struct server_options *o, struct err *err)
{
    if (o->type == ADDRESS_UNIX) {
        const struct unix_options *u = o->branch;

        a->path = xstrdup(u->path);
        a->abstract = u->abstract;
        a->tight = !u->has_tight || u->tight;
        return true;
    }

    const struct inet_options *i = o->branch;

    a->host = xstrdup(i->host);
    a->port = xstrdup(i->port);
    a->numeric = i->numeric;
    a->keep_alive = i->keep_alive;
    return choose_family(i, &a->family, err);
}

/* NBD doc/proto.md, "Block size constraints". */
#define BLOCK_MIN_MAX (64 * KiB)

/* ---- opening ------------------------------------------------------------------------ */

static void state_done(struct nbd_state *s)
{
    free(s->address.path);
    free(s->address.host);
    free(s->address.port);
    free(s->export);
    free(s->context);
    free(s->uri);
}

static bool state_init(struct nbd_state *s, struct node *n, const struct nbd_options *o,
                       struct err *err)
{
    const struct nbd_address *a = &s->address;

    s->n = n;
    s->fd = -1;
    s->reconnect_delay = o->reconnect_delay * NSEC_PER_SEC;
    s->look_ahead = 64 * MiB;
    list_init(&s->in_flight);
    waitq_init(&s->up);
    waitq_init(&s->nap);
    waitq_init(&s->keeper_gone);
    extent_cache_init(&s->extents);
    if (o->has_tls_creds || o->has_tls_hostname)
        return err_set(err, -ENOTSUP, "Parameter '%s' is not supported yet: NBD connections with "
                       "TLS cannot be made", o->has_tls_creds ? "tls-creds" : "tls-hostname");
    s->export = xstrdup(o->has_export ? o->export : "");
    s->context_chosen = o->has_x_dirty_bitmap;
    s->context = xstrdup(o->has_x_dirty_bitmap ? o->x_dirty_bitmap
                                               : LIBNBD_CONTEXT_BASE_ALLOCATION);
    if (!set_address(&s->address, &o->server, err))
        return false;
    s->uri = a->path ? nbd_uri_for_unix(a->path, s->export)
                     : nbd_uri_for_inet(a->host, a->port, s->export);
    return true;
}

/* Whether a server that is about to start may cause such an error. */
static bool may_pass(int code)
{
    return code == -ECONNREFUSED || code == -ENOENT || code == -EHOSTUNREACH ||
           code == -ENETUNREACH || code == -ECONNRESET || code == -ETIMEDOUT;
}

/* One attempt, or as many as fit into open-timeout. */
static bool co_first_connect(struct nbd_state *s, uint32_t open_timeout, struct nbd_connection *c,
                             struct err *err)
{
    uint64_t until = loop_now() + open_timeout * NSEC_PER_SEC;

    while (!co_nbd_connect(s, loop_now() + LIMIT_NBD_CONNECT_NS, c, err)) {
        if (!may_pass(err->code) || loop_now() >= until)
            return false;
        co_sleep_until(MIN(until, loop_now() + NSEC_PER_SEC / 4));
    }
    return true;
}

static bool check_facts(const struct node *n, const struct nbd_facts *f, struct err *err)
{
    const struct nbd_state *s = n->state;

    if (f->read_only && !n->read_only)
        return err_set(err, -EACCES, "NBD export '%s' is read-only: open it with read-only=on",
                       s->export);
    if (s->context_chosen && !f->has_status)
        return err_set(err, -EINVAL, "requested x-dirty-bitmap %s not found", s->context);
    if (f->size > INT64_MAX)
        return err_set(err, -EFBIG, "NBD export '%s' is too large", s->export);
    if (f->block_min && (!is_power_of_2(f->block_min) || f->block_min > BLOCK_MIN_MAX))
        return err_set(err, -EINVAL, "NBD server reports a bad minimum block size, %u",
                       f->block_min);
    return true;
}

static void set_limits(struct node *n, const struct nbd_facts *f)
{
    uint32_t align = f->block_min ? f->block_min : 1;
    uint32_t most = MIN(f->block_max ? f->block_max : LIMIT_NBD_TRANSFER, LIMIT_NBD_TRANSFER);
    unsigned fua = f->can_fua ? REQ_FUA : 0;

    n->size = f->size;
    n->limits.request_align = align;
    n->limits.max_transfer = MAX((uint32_t)align_down(most, align), align);
    n->limits.max_zeroes = (uint32_t)align_down(GiB, align);    /* the protocol has 32 bits */
    n->limits.write_flags = fua;
    n->limits.zero_flags = fua | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
}

static bool co_nbd_open(struct node *n, const void *opts, struct err *err)
{
    const struct nbd_options *o = opts;
    struct nbd_state *s = n->state;
    struct nbd_connection c;

    if (!state_init(s, n, o, err) || !co_first_connect(s, o->open_timeout, &c, err)) {
        state_done(s);
        return false;
    }
    if (!check_facts(n, &c.facts, err)) {
        nbd_connection_close(&c);
        state_done(s);
        return false;
    }
    set_limits(n, &c.facts);
    n->storage_id = xstrdup(s->uri);
    nbd_link_start(s, &c);
    return true;
}

static void co_nbd_close(struct node *n)
{
    struct nbd_state *s = n->state;

    co_nbd_link_pause(s);
    co_nbd_link_close(s);
    state_done(s);
}

static void nbd_cancel_in_flight(struct node *n)
{
    nbd_link_cancel(n->state);
}

static void co_nbd_detach(struct node *n)
{
    co_nbd_link_pause(n->state);
}

static void co_nbd_attach(struct node *n)
{
    nbd_link_resume(n->state);
}

static void nbd_get_info(struct node *n, struct node_info *ret)
{
    struct nbd_state *s = n->state;

    ret->optimal_io = s->facts.block_preferred;
    ret->can_unmap = s->facts.can_trim;
    ret->can_write_zeroes_fast = s->facts.can_fast_zero;
    snprintf(ret->filename, sizeof(ret->filename), "%s", s->uri);
}

const struct driver nbd_driver = {
    .name = "nbd",
    .doc = "a disk that an NBD server has",
    .state_size = sizeof(struct nbd_state),
    .options = &nbd_options_type,
    .is_protocol = true,
    .co_open = co_nbd_open,
    .co_close = co_nbd_close,
    .co_preadv = co_nbd_preadv,
    .co_pwritev = co_nbd_pwritev,
    .co_write_zeroes = co_nbd_write_zeroes,
    .co_discard = co_nbd_discard,
    .co_flush = co_nbd_flush,
    .co_status = co_nbd_status,
    .get_info = nbd_get_info,
    .cancel_in_flight = nbd_cancel_in_flight,
    .parse_filename = nbd_uri_parse,
    .co_detach = co_nbd_detach,
    .co_attach = co_nbd_attach,
};
