/* SPDX-License-Identifier: Apache-2.0
 *
 * Exports and the NBD server: QEMU qapi/block-export.json. As there one NBD
 * server runs at a time, and stopping it takes the exports away.
 */
#include "base/mem.h"
#include "block/bitmap_ref.h"
#include "qmp/address.h"
#include "qmp/impl.h"

/* ---- the NBD server ----------------------------------------------------------------- */

/* Two forms that differ in the address only. */
struct server_args {
    struct socket_address addr;
    bool has_handshake_max_seconds;
    uint32_t handshake_max_seconds;
    bool has_tls_creds, has_tls_authz;
    char *tls_creds, *tls_authz;
    bool has_max_connections;
    uint32_t max_connections;
};
#define SERVER_MEMBERS(address_type) \
    (const struct schema_member[]){ \
        SCHEMA_REQUIRED(struct server_args, addr, "addr", address_type, "where to listen"), \
        SCHEMA_OPTIONAL(struct server_args, handshake_max_seconds, "handshake-max-seconds", \
                        &schema_uint32, "for a client to choose an export; 0: no limit"), \
        SCHEMA_OPTIONAL(struct server_args, tls_creds, "tls-creds", &schema_str, \
                        "not supported yet"), \
        SCHEMA_OPTIONAL(struct server_args, tls_authz, "tls-authz", &schema_str, \
                        "not supported yet"), \
        SCHEMA_OPTIONAL(struct server_args, max_connections, "max-connections", \
                        &schema_uint32, "at one time; 0: no limit"), \
        SCHEMA_END, \
    }
static const struct schema_type server_args_type = {
    .name = "q_obj_nbd-server-start-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct server_args), .members = SERVER_MEMBERS(&socket_address_legacy_type),
};
static const struct schema_type server_options_type = {
    .name = "NbdServerOptions", .kind = SCHEMA_STRUCT, .size = sizeof(struct server_args),
    .members = SERVER_MEMBERS(&socket_address_type),
};

static bool start_server(struct qmp *q, const struct server_args *a, struct err *err)
{
    struct nbd_server_opts o = {
        .exports = q->exports,
        .max_connections = a->has_max_connections ? a->max_connections
                                                  : NBD_DEFAULT_MAX_CONNECTIONS,
        .handshake_seconds_max = a->has_handshake_max_seconds ? a->handshake_max_seconds
                                                              : NBD_DEFAULT_HANDSHAKE_SECONDS_MAX,
    };

    if (q->nbd_phase != NBD_SERVER_OFF)
        return err_set(err, -EEXIST, "NBD server already running");
    if (a->has_tls_creds)
        return err_set(err, -ENOTSUP, "No TLS credentials with id '%s'", a->tls_creds);
    if (a->has_tls_authz)
        return err_set(err, -EINVAL, "TLS authorization was given, but no TLS credentials");
    if (!address_resolve(&a->addr, &o.address, err))
        return false;

    q->nbd_phase = NBD_SERVER_STARTING;
    q->nbd_server = co_nbd_server_start(&o, err);
    q->nbd_phase = q->nbd_server ? NBD_SERVER_ON : NBD_SERVER_OFF;
    return q->nbd_server != NULL;
}

static bool co_server_start(const struct qmp_call *call, const void *args, void *ret,
                            struct err *err)
{
    return start_server(call->qmp, args, err);
}

bool co_qmp_nbd_server_start(struct qmp *q, const json_t *options, bool keyval, struct err *err)
{
    struct server_args a;

    if (!schema_decode(&server_options_type, options, keyval, &a, err))
        return false;

    bool ok = start_server(q, &a, err);

    schema_clear(&server_options_type, &a);
    return ok;
}

char *qmp_nbd_server_help(void)
{
    return schema_help(&server_options_type);
}

struct nbd_server *qmp_nbd_server(struct qmp *q)
{
    return q->nbd_phase == NBD_SERVER_ON ? q->nbd_server : NULL;
}

struct nbd_exports *qmp_nbd_exports(struct qmp *q)
{
    return q->exports;
}

/* How long requests in flight may take before nbd-server-stop is answered: its
 * exports go on ending behind it then. */
#define SERVER_STOP_NS (10 * NSEC_PER_SEC)

bool co_qmp_exports_close(struct qmp *q, uint64_t deadline)
{
    if (q->nbd_phase == NBD_SERVER_ON) {
        q->nbd_phase = NBD_SERVER_STOPPING;
        co_nbd_server_stop(MOVE(q->nbd_server), deadline);
        q->nbd_phase = NBD_SERVER_OFF;
    }
    return co_nbd_exports_close(q->exports, deadline);
}

static bool co_server_stop(const struct qmp_call *call, const void *args, void *ret,
                           struct err *err)
{
    if (call->qmp->nbd_phase != NBD_SERVER_ON)
        return err_set(err, -ENOENT, "NBD server not running");
    co_qmp_exports_close(call->qmp, loop_now() + SERVER_STOP_NS);
    return true;
}

/* ---- block-export-add ------------------------------------------------------------------ */

static const struct schema_type export_type_enum = {
    .name = "BlockExportType", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "nbd", NULL },
};

struct nbd_branch {
    bool has_name, has_description, has_bitmaps, has_allocation_depth;
    char *name, *description;
    struct schema_array bitmaps;
    bool allocation_depth;
};
static const struct schema_type nbd_branch_type = {
    .name = "BlockExportOptionsNbd", .kind = SCHEMA_STRUCT, .size = sizeof(struct nbd_branch),
    .members = (const struct schema_member[]){
        SCHEMA_OPTIONAL(struct nbd_branch, name, "name", &schema_str,
                        "as clients ask for it; the node's name unless given"),
        SCHEMA_OPTIONAL(struct nbd_branch, description, "description", &schema_str,
                        "shown to clients"),
        SCHEMA_OPTIONAL(struct nbd_branch, bitmaps, "bitmaps", &bitmap_or_str_list_type,
                        "offer qemu:dirty-bitmap:NAME for these; a name alone is looked for down "
                        "the backing chain"),
        SCHEMA_OPTIONAL(struct nbd_branch, allocation_depth, "allocation-depth", &schema_bool,
                        "offer the metadata context qemu:allocation-depth"),
        SCHEMA_END,
    },
};

struct export_args {
    int type;
    char *id, *node_name;
    bool has_fixed_iothread, fixed_iothread, has_iothread;
    char *iothread;
    bool has_writable, writable, has_writethrough, writethrough;
    void *branch;
};

static const struct schema_type *export_branch(const char *type)
{
    return strcmp(type, "nbd") == 0 ? &nbd_branch_type : NULL;
}

static const char *export_branch_name(unsigned index)
{
    return index == 0 ? "nbd" : NULL;
}

static const struct schema_type export_args_type = {
    .name = "BlockExportOptions", .kind = SCHEMA_UNION, .size = sizeof(struct export_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct export_args, type, "type", &export_type_enum, NULL),
        SCHEMA_REQUIRED(struct export_args, id, "id", &schema_str, "a name for this export"),
        SCHEMA_OPTIONAL(struct export_args, fixed_iothread, "fixed-iothread", &schema_bool,
                        "no effect: an exported disk stays on its thread"),
        SCHEMA_OPTIONAL(struct export_args, iothread, "iothread", &schema_str,
                        "no effect, but it has to exist: --threads spreads disks"),
        SCHEMA_REQUIRED(struct export_args, node_name, "node-name", &schema_str,
                        "what to export"),
        SCHEMA_OPTIONAL(struct export_args, writable, "writable", &schema_bool,
                        "clients may write"),
        SCHEMA_OPTIONAL(struct export_args, writethrough, "writethrough", &schema_bool,
                        "every write is on stable storage before it is answered"),
        SCHEMA_END,
    },
    .tag = "type", .branch = export_branch, .branch_name = export_branch_name,
    .branch_offset = offsetof(struct export_args, branch),
};

bool qmp_export_check(const struct qmp *q, const char *id, struct err *err)
{
    if (!job_id_wellformed(id))
        return err_set(err, -EINVAL, "Invalid block export id");
    return q->nbd_phase == NBD_SERVER_ON || err_set(err, -ENOENT, "NBD server not running");
}

static bool check_export(struct qmp *q, const struct export_args *a, struct err *err)
{
    if (!qmp_export_check(q, a->id, err))
        return false;
    if (a->has_iothread && !json_object_get(q->iothreads, a->iothread))
        return err_set(err, -ENOENT, "iothread \"%s\" not found", a->iothread);
    return true;
}

/* Borrows the texts. */
static struct nbd_export_bitmap *bitmap_names(const struct schema_array *list)
{
    struct nbd_export_bitmap *names = xcalloc(list->n + 1, sizeof(*names));
    const struct schema_alt *items = list->items;

    for (size_t i = 0; i < list->n; i++) {
        const struct bitmap_ref *ref = items[i].object;

        if (items[i].kind == SCHEMA_ALT_STR)
            names[i].name = items[i].str;
        else
            names[i] = (struct nbd_export_bitmap){ .node = ref->node, .name = ref->name };
    }
    return names;
}

bool qmp_export_stays(struct qmp *q, const char *id, struct err *err)
{
    if (q->nbd_phase == NBD_SERVER_ON)
        return true;
    /* nbd-server-stop came in between and did not see it. */
    return nbd_export_del(q->exports, id, NBD_EXPORT_DEL_HARD, err) &&
           err_set(err, -ENOENT, "NBD server not running");
}

bool co_qmp_export_add(struct qmp *q, const struct nbd_export_opts *o, struct err *err)
{
    return co_nbd_export_add(q->exports, o, err) && qmp_export_stays(q, o->id, err);
}

static bool co_export_add(const struct qmp_call *call, const void *args, void *ret,
                          struct err *err)
{
    const struct export_args *a = args;
    const struct nbd_branch *nbd = a->branch;
    struct qmp *q = call->qmp;

    CLEANUP(free) struct nbd_export_bitmap *bitmaps = bitmap_names(&nbd->bitmaps);

    if (!check_export(q, a, err))
        return false;

    CLEANUP(node_unref) struct node *node = node_find(a->node_name, err);
    struct nbd_export_opts o = {
        .id = a->id,
        .node = node,
        .name = nbd->name,
        .description = nbd->description,
        .writable = a->writable,
        .writethrough = a->writethrough,
        .allocation_depth = nbd->allocation_depth,
        .bitmaps = bitmaps,
        .n_bitmaps = nbd->bitmaps.n,
    };

    return node && co_qmp_export_add(q, &o, err);
}

/* ---- block-export-del ------------------------------------------------------------------ */

const struct schema_type export_remove_mode_enum = {
    .name = "BlockExportRemoveMode", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "safe", "hard", NULL },
};

struct export_del_args {
    char *id;
    bool has_mode;
    int mode;                /* enum nbd_export_del_mode */
};
static const struct schema_type export_del_args_type = {
    .name = "q_obj_block-export-del-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct export_del_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct export_del_args, id, "id", &schema_str, "the export"),
        SCHEMA_OPTIONAL(struct export_del_args, mode, "mode", &export_remove_mode_enum,
                        "safe (the default): refused while clients are connected"),
        SCHEMA_END,
    },
};

/* An export without requests in flight is gone within this, so that scripts which
 * do not wait for the event find its node free. */
#define EXPORT_GONE_NS (1 * NSEC_PER_SEC)

bool co_qmp_export_del(struct qmp *q, const char *id, int mode, struct err *err)
{
    if (!nbd_export_del(q->exports, id, (enum nbd_export_del_mode)mode, err))
        return false;
    /* Not in time is no error: BLOCK_EXPORT_DELETED tells when. */
    bool gone = co_nbd_export_wait_gone(q->exports, id, loop_now() + EXPORT_GONE_NS);

    (void)gone;
    return true;
}

static bool co_export_del(const struct qmp_call *call, const void *args, void *ret,
                          struct err *err)
{
    const struct export_del_args *a = args;

    return co_qmp_export_del(call->qmp, a->id, a->mode, err);
}

/* ---- query-block-exports ---------------------------------------------------------------- */

struct export_info {
    char *id, *node_name;
    int type;
    bool shutting_down;
    bool has_uri;
    char *uri;
    char *name;
    int64_t size, clients;
    bool writable;
    struct export_stats { int64_t n[NBD_STATS]; } stats;
};
#define ES(stat, json) SCHEMA_REQUIRED(struct export_stats, n[stat], json, &schema_int, NULL)
static const struct schema_type export_stats_type = {
    .name = "BlockExportStats", .kind = SCHEMA_STRUCT, .size = sizeof(struct export_stats),
    .members = (const struct schema_member[]){
        ES(NBD_STAT_READS, "reads"), ES(NBD_STAT_READ_BYTES, "read-bytes"),
        ES(NBD_STAT_WRITES, "writes"), ES(NBD_STAT_WRITTEN_BYTES, "written-bytes"),
        ES(NBD_STAT_DISCARDS, "discards"), ES(NBD_STAT_DISCARDED_BYTES, "discarded-bytes"),
        ES(NBD_STAT_FLUSHES, "flushes"), ES(NBD_STAT_ERRORS, "errors"), SCHEMA_END,
    },
};
static const struct schema_type export_info_type = {
    .name = "BlockExportInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct export_info),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct export_info, id, "id", &schema_str, NULL),
        SCHEMA_REQUIRED(struct export_info, type, "type", &export_type_enum, NULL),
        SCHEMA_REQUIRED(struct export_info, node_name, "node-name", &schema_str, NULL),
        SCHEMA_REQUIRED(struct export_info, shutting_down, "shutting-down", &schema_bool, NULL),
        SCHEMA_OPTIONAL(struct export_info, uri, "uri", &schema_str, "how clients reach it"),
        SCHEMA_REQUIRED(struct export_info, name, "name", &schema_str, "as clients ask for it"),
        SCHEMA_REQUIRED(struct export_info, size, "size", &schema_int, "bytes"),
        SCHEMA_REQUIRED(struct export_info, writable, "writable", &schema_bool, NULL),
        SCHEMA_REQUIRED(struct export_info, clients, "clients", &schema_int,
                        "connections at this moment"),
        SCHEMA_REQUIRED(struct export_info, stats, "stats", &export_stats_type,
                        "what clients have asked for so far"),
        SCHEMA_END,
    },
};
static const struct schema_type export_info_list = {
    .name = "BlockExportInfoList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &export_info_type,
};

struct export_list {
    const struct nbd_server *server;    /* NULL: none runs */
    struct schema_array *to;
};

static void add_export(const struct nbd_export_info *info, void *arg)
{
    const struct export_list *l = arg;
    struct export_info *items = xrealloc(l->to->items, (l->to->n + 1) * sizeof(*items));
    char *uri = l->server && !info->shutting_down ? nbd_server_uri(l->server, info->name) : NULL;

    items[l->to->n++] = (struct export_info){
        .id = xstrdup(info->id),
        .node_name = xstrdup(info->node_name),
        .shutting_down = info->shutting_down,
        .has_uri = uri != NULL,
        .uri = uri,
        .name = xstrdup(info->name),
        .size = (int64_t)info->size,
        .clients = info->connections,
        .writable = info->writable,
    };
    for (int i = 0; i < NBD_STATS; i++)
        items[l->to->n - 1].stats.n[i] = (int64_t)nbd_stats_get(info->stats, (enum nbd_stat)i);
    l->to->items = items;
}

static bool co_query_exports(const struct qmp_call *call, const void *args, void *ret,
                             struct err *err)
{
    struct export_list list = { qmp_nbd_server(call->qmp), ret };

    nbd_exports_for_each(call->qmp->exports, add_export, &list);
    return true;
}

/* ---- what other areas use ----------------------------------------------------------------- */

struct id_search {
    const char *id;
    char *node_name;
};

static void match_id(const struct nbd_export_info *info, void *arg)
{
    struct id_search *s = arg;

    if (!s->node_name && strcmp(info->id, s->id) == 0)
        s->node_name = xstrdup(info->node_name);
}

struct node *qmp_find_device(struct qmp *q, const char *device, struct err *err)
{
    struct node *n = node_find(device, err);

    if (n)
        return n;

    struct id_search s = { .id = device };

    nbd_exports_for_each(q->exports, match_id, &s);

    CLEANUP(free) char *node_name = s.node_name;

    n = node_name ? node_find(node_name, err) : NULL;
    if (!n && !node_name)
        err_set(err, -ENODEV, "Cannot find device='%s' nor node-name='%s'", device, device);
    return n;
}

bool qmp_add_iothread(struct qmp *q, const char *id, struct err *err)
{
    if (!job_id_wellformed(id))
        return err_set(err, -EINVAL, "Parameter 'id' expects an identifier");
    if (json_object_get(q->iothreads, id))
        return err_set(err, -EEXIST, "attempt to add duplicate property '%s' to object "
                       "(type 'container')", id);
    json_object_set_new(q->iothreads, id, json_true());
    return true;
}

const struct qmp_command qmp_export_commands[] = {
    { .name = "nbd-server-start", .doc = "listen for NBD clients", .args = &server_args_type,
      .co_run = co_server_start },
    { .name = "nbd-server-stop", .doc = "stop listening and take all exports away",
      .co_run = co_server_stop },
    { .name = "block-export-add", .doc = "export a node", .args = &export_args_type,
      .co_run = co_export_add },
    { .name = "block-export-del", .doc = "take an export away", .args = &export_del_args_type,
      .co_run = co_export_del },
    { .name = "query-block-exports", .doc = "all exports", .ret = &export_info_list,
      .co_run = co_query_exports },
    { 0 },
};
