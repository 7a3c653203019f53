/* SPDX-License-Identifier: Apache-2.0
 *
 * Making, finding and joining nodes. The registry of names is the one thing
 * here that every loop shares; a mutex guards it, and it is never touched on
 * the data path.
 *
 * Permissions: every use of a node is an edge, held by a parent node or by a
 * user outside the graph (an export, a job), that says what it does and what it
 * tolerates of others. Two edges conflict when one writes and the other does
 * not share writing.
 */
#ifndef BLOCK_GRAPH_H
#define BLOCK_GRAPH_H

#include "block/driver.h"

/* ---- options of a node as users give them -------------------------------- */

struct cache_options {
    bool has_direct, direct;
    bool has_no_flush, no_flush;
};

/* QAPI BlockdevOptions: what all drivers share, and the driver's own. */
struct blockdev_options {
    char *driver;
    bool has_node_name;
    char *node_name;
    bool has_discard;
    int discard;                 /* index of "ignore", "unmap" */
    bool has_cache;
    struct cache_options cache;
    bool has_read_only, read_only;
    bool has_auto_read_only, auto_read_only;
    bool has_force_share, force_share;
    bool has_detect_zeroes;
    int detect_zeroes;           /* index of "off", "on", "unmap" */
    void *own;                   /* decoded driver->options */
};
extern const struct schema_type blockdev_options_type;

/* BlockdevRef / BlockdevRefOrNull: a node's name, its options inline, or null. */
extern const struct schema_type blockdev_ref_type, blockdev_ref_or_null_type;   /* schema_alt */

/* ---- opening ------------------------------------------------------------- */

/* Open a node and all that it names, on the calling coroutine's loop. @json is
 * what blockdev-add takes (@keyval: scalars are strings). Children given by
 * name must live on this loop. The result holds one reference. On failure
 * nothing is left open. Coroutine. */
struct node *co_node_open(const json_t *json, bool keyval, struct err *err);
/* The same from options that are decoded already, to which a driver may have added what users
 * cannot say. */
struct node *co_node_open_decoded(const struct blockdev_options *o, struct err *err);

/* A short way for the common case: @format (NULL: raw) over the file, device or
 * nbd URI @filename. "json:{...}" gives the options themselves, under @format only
 * if that is not NULL and they are a protocol's. */
struct open_file_opts {
    const char *filename;
    const char *format;
    bool read_only;
    bool no_backing;       /* qcow2: leave the backing file closed ("backing": null) */
    bool direct;
    bool force_share;
    bool unmap;            /* discard=unmap at every level */
    const char *node_name; /* NULL: generated */
};
struct node *co_node_open_file(const struct open_file_opts *o, struct err *err);
/* The JSON that co_node_open_file opens. New reference; NULL with @err when the
 * name is bad or asks for a driver that is not there. Looks at the file system
 * (stat), does not suspend. */
json_t *node_json_for_file(const struct open_file_opts *o, struct err *err);
/* Which driver a user's file name asks for: "nbd" for nbd:// nbds:// nbd+unix://, "host_device" for
 * a block device, else "file". Looks at the file system (stat), does not suspend. */
const char *protocol_for_filename(const char *filename);

/* The loop that a node opened from @json has to live on because it names nodes
 * that exist (NULL: any). Named nodes on different loops are brought together by
 * moving those that are idle; -EXDEV in @err when that is not enough. Names of
 * nodes that do not exist are left for the opening to refuse. Main loop
 * coroutine. */
bool co_node_json_loop(const json_t *json, struct loop **ret, struct err *err);

/* For drivers, inside co_open: open or find the child that option @role ("file",
 * "backing", "data-file", or another name of at most 15 bytes) describes and attach
 * it. perms: what this driver will do to it; shared: what it lets others do.
 * Inline options inherit: cache.*, force-share, read-only and auto-read-only from
 * the parent (but a backing file is read-only), discard is "unmap". When "file" or
 * "data-file" comes out read-only though EDGE_WRITE was asked and the parent is
 * auto-read-only, the parent becomes read-only too and only EDGE_READ is taken.
 * SCHEMA_ALT_NULL attaches nothing and succeeds. A format shares everything on
 * its backing file, as QEMU does when nobody above minds: an overlay may stand on
 * a live disk (fleecing, sync=none). */
enum edge_perm {
    EDGE_READ = 1,
    EDGE_WRITE = 2,
    EDGE_RESIZE = 4,
};
MUST_CHECK bool co_node_open_child(struct node *parent, const char *role,
                                   const struct schema_alt *ref, unsigned perms,
                                   unsigned shared, struct err *err);

/* For drivers, inside co_open, before they open a child that an image names by
 * itself: refuses the file @path when it is the storage of @n or of a node that @n
 * is being opened for, so that an image which is its own backing file, directly or
 * through others, is an error and no endless chain. */
MUST_CHECK bool node_check_no_loop(const struct node *n, const char *path, struct err *err);

/* ---- finding --------------------------------------------------------------- */

/* A new reference, or NULL with @err: "Cannot find device='' nor node-name='x'"
 * (-ENODEV; QEMU's words), or -EAGAIN while it is being opened. Any thread. */
struct node *node_find(const char *name, struct err *err);

/* Call @fn for every node, with a reference held. Main loop coroutine (it hops
 * to no loop itself). */
void node_for_each(void (*fn)(struct node *n, void *arg), void *arg);

/* blockdev-add and blockdev-del: a node that a user added is held by a reference
 * that stands for the user (node_set_monitor_owned takes one of its own; the
 * caller keeps its own). Deleting is refused while the node has parents or users
 * ("Node 'x' is in use by ..."), or was not added by a user. It takes over the
 * caller's reference in every case; on success the node is closed when it returns,
 * unless somebody else holds a reference still. Coroutine on the node's loop. */
void node_set_monitor_owned(struct node *n);
bool node_monitor_owned(const struct node *n);
MUST_CHECK bool co_node_monitor_del(struct node *n, struct err *err);

/* ---- edges ----------------------------------------------------------------- */

/* Attach a user from outside the graph. @who is said to people ("block export 'e0'").
 * Fails when it conflicts with an edge that is there, or wants to write to a
 * read-only node. The edge holds a reference. */
struct edge *edge_attach_user(struct node *n, const char *who, unsigned perms, unsigned shared,
                              struct err *err);
void edge_detach(struct edge *e);                /* takes NULL; frees the edge */
MUST_CHECK bool edge_set_perms(struct edge *e, unsigned perms, unsigned shared, struct err *err);
/* "node 'x' is in use by block export 'e0'": whether anything uses n. */
bool node_in_use(struct node *n, struct err *err);

/* Whether @a and @b come down to the same file, device or export, or one is in
 * the other's chain. */
bool node_shares_storage(struct node *a, struct node *b);
/* Whether the file @path is the storage of a node in @n's chain (by device and inode). */
bool node_uses_file(struct node *n, const char *path);

/* ---- moving ------------------------------------------------------------------ */

/* Move the connected graph of @n, which must be idle and have no users, to
 * @loop. The caller holds a reference and is not inside co_node_call. Main loop
 * coroutine. Waits a second for calls to these nodes. -EBUSY when there are users
 * or notifiers, or a call goes on. */
MUST_CHECK bool co_node_move(struct node *n, struct loop *loop, struct err *err);

#endif
