/* SPDX-License-Identifier: Apache-2.0
 *
 * Private to the qcow2 driver: the state of an open image and what its files call
 * of each other, a section a file. docs/qcow2.md tells how it works,
 * docs/crash-safety.md has the rules of order (I-Q1 ...) that code here cites.
 *
 * Everything belongs to the node's loop. What is in memory changes only between
 * two suspensions, so a table entry, a refcount and the list of claims agree
 * whenever a coroutine runs; after each co_ call they may all be different.
 *
 * Words: a guest offset is one in the virtual disk, a host offset one in the
 * image file; cluster numbers are offsets divided by the cluster size.
 */
#ifndef QCOW2_QCOW2_H
#define QCOW2_QCOW2_H

#include "block/driver.h"
#include "drivers/qcow2/bitmaps_format.h"
#include "drivers/qcow2/cache.h"
#include "drivers/qcow2/format.h"
#include "drivers/qcow2/metaset.h"
#include "drivers/qcow2/options.h"
#include "drivers/qcow2/snapshot_format.h"
#include "drivers/qcow2/table.h"

/* Runs of host clusters whose references are given up. */
struct qcow2_run {
    uint64_t first;
    uint32_t n;
    bool punch;                  /* pass a discard on to the file when they are free */
};

struct qcow2_runs {
    struct qcow2_run *v;
    size_t n, cap;
};

struct qcow2_unpacker;

struct qcow2 {
    struct node *node;           /* the node itself */
    struct node *file;           /* its child */
    struct node *data;           /* where the guest's data is: the same, or the data file */

    /* Never changed after opening. */
    struct qcow2_geometry geo;
    uint64_t cluster_size;
    uint8_t unit_bits;           /* what is allocated by itself, a cluster or a subcluster */
    uint8_t l2_slice_bits;       /* L2 entries in a slice: 1 << bits */
    uint8_t ref_slice_bits;      /* refcounts in a slice */
    uint8_t ref_block_bits;      /* refcounts in a block */
    bool raw_data;               /* the data file has to read as the disk does */
    bool pass_discard_request, pass_discard_snapshot, pass_discard_other, discard_no_unref;
    struct qcow2_cache_sizes cache_sizes;

    /* The header as it is in the file. */
    struct qcow2_header header;
    bool names_backing;          /* it names a backing file, open or not */
    struct co_mutex header_lock; /* one write to the first cluster at a time */
    bool write_ready;            /* writing is allowed, and the header fit for it */
    bool outdated;               /* enabled bitmaps are marked in_use */
    bool wrote;                  /* something was allocated since opening */
    bool stopped;                /* nothing of metadata is written any more (I-Q15) */
    bool lazy;                   /* refcounts are written on closing (I-Q10) */

    /* Metadata in memory. Tables are whole, caches hold slices. refcounts only of
     * writable nodes. */
    struct qcow2_table l1, reftable;
    struct qcow2_cache *l2, *refcounts;
    struct qcow2_metaset meta;   /* clusters of L2 tables and refcount blocks */

    /* snapshot.c, retree.c */
    struct qcow2_snapshots snapshots;
    struct qcow2_metaset inactive;   /* clusters of the snapshots' L1 and L2 tables */
    struct qcow2_bitmap_dir bitmaps; /* empty unless they belong to the content (bitmaps.c) */
    struct qcow2_metaset bitmap_meta;    /* clusters of their directory and tables */
    bool retreeing;              /* the refcount table may not become longer */

    /* refcount.c: no cluster below free_hint is free; from fresh_from on nothing
     * was ever written and the file reads as zero (UINT64_MAX: never so). */
    uint64_t free_hint;          /* cluster number */
    uint64_t fresh_from;         /* bytes */
    uint64_t host_bytes;         /* of the file when it was opened: it stays as long; 0 when
                                  *   the disk has become shorter */
    struct co_mutex reftable_lock;   /* adding refcount blocks, moving the table */
    struct co_mutex store_lock;  /* one write-back of the refcount cache at a time */
    struct co_mutex grow_lock;   /* one resize of the file at a time */
    struct co_mutex resize_lock; /* one resize of the disk at a time */
    struct co_mutex bitmaps_lock;    /* one at the stored bitmaps at a time */

    /* alloc.c, l2.c */
    struct list claims;          /* guest clusters that are being allocated */
    struct list creations;       /* L2 tables that are being made */

    /* sync.c */
    struct co_mutex sync_lock;
    struct qcow2_round *next_round;
    int flush_error;             /* of a flush that failed, or since writing stopped; sticks */
    bool sync_started;           /* a write-back runs in the background */
    struct qcow2_runs dropped;   /* no entry in memory names them any more */
    struct qcow2_runs freed;     /* nor does one on disk */
    bool reaping;
    uint64_t reaps;              /* how often freed was taken and released */
    struct waitq reaped;
    unsigned epoch, in_flight[2];
    struct waitq drained;

    struct qcow2_unpacker *unpacker;     /* compress.c; NULL until it is needed */

    /* pack.c */
    uint64_t pack_next;          /* host offset behind what was packed last; 0: no cluster is
                                  *   open */
    struct co_mutex pack_lock;   /* taking room */
    struct co_sem pack_slots;    /* clusters that are being written */
    struct list packers;         /* idle */
};

static inline struct node *qcow2_backing(const struct qcow2 *s)
{
    return edge_node(s->node->backing);
}

/* Whether what no entry maps in [off, ...) reads as zero and will go on to. */
static inline bool qcow2_unallocated_is_zero(const struct qcow2 *s, uint64_t off)
{
    struct node *b = qcow2_backing(s);

    return b ? off >= node_size(b) : !s->names_backing;
}

/* ---- hostfile.c: bytes of the image file --------------------------------- */

/* Read data; what lies beyond the end of the file reads as zero (its last cluster
 * need not be whole). */
MUST_CHECK int co_qcow2_host_read(struct qcow2 *s, uint64_t host, uint64_t len,
                                  const struct iovec *iov, int niov, unsigned flags);
/* The same of the file that has the guest's data. */
MUST_CHECK int co_qcow2_data_read(struct qcow2 *s, uint64_t host, uint64_t len,
                                  const struct iovec *iov, int niov, unsigned flags);
/* The same as the first for metadata into one buffer; -EIO when all of it lies beyond the end. */
MUST_CHECK int co_qcow2_meta_read(struct qcow2 *s, uint64_t host, uint64_t len, void *buf);
MUST_CHECK int co_qcow2_meta_write(struct qcow2 *s, uint64_t host, uint64_t len, const void *buf);

/* See to it that the file has @end bytes at least. Keeps ahead in larger steps. */
MUST_CHECK int co_qcow2_host_grow(struct qcow2 *s, uint64_t end);
/* The same of the file that has the guest's data; a data file gets the disk's length. */
MUST_CHECK int co_qcow2_data_grow(struct qcow2 *s, uint64_t end);
/* On closing: give back what the file was kept ahead, and what a shorter disk left. */
void co_qcow2_host_trim(struct qcow2 *s);

/* ---- header.c ------------------------------------------------------------ */

/* Before the first write of metadata: clear the autoclear features that we do not
 * keep up to date. 0 when writing is allowed; -EIO for a corrupt image. */
MUST_CHECK int co_qcow2_begin_metadata(struct qcow2 *s);
/* The same before the guest's content changes: enabled bitmaps are marked in_use. */
MUST_CHECK int co_qcow2_begin_write(struct qcow2 *s);
/* Stop writing, and set the corrupt bit in the file (version 3). Always -EIO. */
MUST_CHECK int co_qcow2_mark_corrupt(struct qcow2 *s, const char *what, uint64_t host,
                                     uint64_t len);
/* Set the dirty bit, on the disk, unless it is set: refcounts may be wrong from now
 * on. And clear it, when they are right, on the disk, again. Under sync_lock, or when
 * nobody else is there. */
MUST_CHECK int co_qcow2_mark_dirty(struct qcow2 *s);
MUST_CHECK int co_qcow2_mark_clean(struct qcow2 *s);
/* Stop writing, for good: what is in the file is not known any more (I-Q15). */
void qcow2_stop_writing(struct qcow2 *s);

/* Point the header at other tables. Not flushed. Suspend. */
struct qcow2_trees {
    uint64_t size;               /* of the virtual disk */
    uint64_t l1_off, reftable_off, snapshots_off;
    uint32_t l1_entries, reftable_clusters, n_snapshots;
};
/* All of them at once: one write inside the first sector. */
MUST_CHECK int co_qcow2_write_tree_fields(struct qcow2 *s, const struct qcow2_trees *t);
MUST_CHECK int co_qcow2_write_reftable_fields(struct qcow2 *s, uint64_t off, uint32_t clusters);
MUST_CHECK int co_qcow2_write_l1_fields(struct qcow2 *s, uint64_t off, uint32_t entries);
MUST_CHECK int co_qcow2_write_size_field(struct qcow2 *s, uint64_t size);

/* Rewrite the first cluster with @c changed and all that is not known here kept
 * (format.h), in the file and in s->header; flushed before and after, so what the
 * new header names may have been written just now. Writing must have begun. After a
 * failure half way writing stops. Suspends. */
MUST_CHECK bool co_qcow2_rewrite_header(struct qcow2 *s, const struct qcow2_header_change *c,
                                        struct err *err);

/* Whether the host range touches the header, a table or a refcount block. */
bool qcow2_is_metadata(const struct qcow2 *s, uint64_t host, uint64_t len);

/* ---- refcount.c ---------------------------------------------------------- */

struct qcow2_space {
    uint64_t host;               /* of the first cluster */
    uint32_t n;                  /* clusters */
    bool fresh;                  /* known to read as zero, never written */
};

/* Give a reference to up to @want free clusters in one piece (at least one); the
 * file is long enough for them. */
MUST_CHECK int co_qcow2_alloc(struct qcow2 *s, uint32_t want, struct qcow2_space *ret);
/* One more reference to a cluster that has some. -ERANGE: as many as can be counted
 * are there. -EAGAIN: its refcount is not in memory; co_qcow2_refcount loads it. Does
 * not suspend. */
MUST_CHECK int qcow2_ref_more(struct qcow2 *s, uint64_t cluster);
/* Give up references. For clusters that no entry on disk can name: those of a
 * failed allocation, or after their time of grace. */
MUST_CHECK int co_qcow2_unref(struct qcow2 *s, uint64_t first, uint32_t n);
MUST_CHECK int co_qcow2_refcount(struct qcow2 *s, uint64_t cluster, uint64_t *ret);
/* Write back what is dirty in the refcount cache (not the refcount table). */
MUST_CHECK int co_qcow2_store_refcounts(struct qcow2 *s);
extern const struct qcow2_cache_ops qcow2_refcount_cache_ops;

/* ---- reftable.c ---------------------------------------------------------- */

/* Make refcount block @block, and if need be a longer refcount table. */
MUST_CHECK int co_qcow2_add_refblock(struct qcow2 *s, uint64_t block);
/* Exactly @n clusters in one piece, for a table; never fresh. */
MUST_CHECK int co_qcow2_alloc_table(struct qcow2 *s, uint32_t n, uint64_t *ret_host);

/* Make the refcount table long enough for @clusters more, whatever is free in between. */
MUST_CHECK int co_qcow2_reserve(struct qcow2 *s, uint64_t clusters);

/* ---- snapshot.c ---------------------------------------------------------- */

/* Read the snapshot table. */
MUST_CHECK bool co_qcow2_load_snapshots(struct qcow2 *s, struct err *err);
/* Note where the snapshots' tables are, for the overlap check. */
MUST_CHECK bool co_qcow2_guard_snapshots(struct qcow2 *s, struct err *err);
/* The disk as it was at snapshot @which: its L1 table and size instead of the
 * header's. For a node that is being opened read-only. */
MUST_CHECK bool qcow2_enter_snapshot(struct qcow2 *s, const char *which, struct err *err);
/* Read the L1 table of a snapshot, in host order. free() it. */
MUST_CHECK int co_qcow2_read_l1(struct qcow2 *s, uint64_t off, uint32_t n, uint64_t **ret);

/* ---- bitmaps.c, bitmaps_store.c ------------------------------------------ */

/* Read the bitmap directory, if there is one that is up to date. */
MUST_CHECK bool co_qcow2_load_bitmaps(struct qcow2 *s, struct err *err);
/* Where the directory @d, which lies at @dir_off, and its tables are, for the overlap
 * check. -ENOMEM. The caller gives *ret up in any case. */
MUST_CHECK int qcow2_guard_bitmaps(const struct qcow2 *s, const struct qcow2_bitmap_dir *d,
                                   uint64_t dir_off, struct qcow2_metaset *ret);
/* The bits of the bitmap @name, as co_qcow2_bitmap_load; the memory that they touch is taken from
 * @budget, bytes, or they are refused. */
MUST_CHECK bool co_qcow2_load_bits(struct qcow2 *s, const char *name, uint64_t *budget,
                                   struct bitmap **ret, struct err *err);
/* Mark the bitmap @name in_use on the disk, and flush that. Success if there is none. */
MUST_CHECK int co_qcow2_bitmap_mark(struct qcow2 *s, const char *name);
/* Mark bitmaps in_use on the disk: those that are enabled, or all. Not flushed. Under
 * bitmaps_lock. */
MUST_CHECK int co_qcow2_bitmaps_mark(struct qcow2 *s, bool all);
/* All of them, flushed: the disk's size changes. */
MUST_CHECK int co_qcow2_bitmaps_outdate(struct qcow2 *s);
/* Take an extension out of the header that does not belong to the content. Under
 * bitmaps_lock. */
MUST_CHECK int co_qcow2_drop_stale_bitmaps(struct qcow2 *s);
MUST_CHECK int co_qcow2_read_bitmap_table(struct qcow2 *s, const struct qcow2_bitmap_entry *e,
                                          uint64_t **ret);

/* ---- bitmaps_node.c ------------------------------------------------------- */

extern const struct bitmap_storage qcow2_bitmap_storage;
/* Make dirty bitmaps of the node of those that the image keeps. At the end of opening. */
void co_qcow2_bring_back_bitmaps(struct qcow2 *s);

/* ---- open.c -------------------------------------------------------------- */

/* Forget all metadata in memory and read anew what the header names. For an idle
 * node. On failure everything in memory is as it was. */
MUST_CHECK bool co_qcow2_reload(struct qcow2 *s, struct err *err);

/* ---- map.c --------------------------------------------------------------- */

struct qcow2_extent {
    enum qcow2_kind kind;
    bool copied;
    uint64_t len;                /* guest bytes from the asked offset, > 0 */
    uint64_t host;               /* NORMAL, ZERO_ALLOC: where the asked offset is */
    struct qcow2_l2_entry entry; /* COMPRESSED; len ends with its cluster */
    /* For writing to clusters that have subclusters, unless it is in place: bytes
     * before and behind that have to be written too, and whether they are zeros. */
    uint32_t head, tail;
    bool zero_around;
};

/* In a data file the guest's clusters lie where the guest has them, and nowhere else. */
static inline bool qcow2_place_is_right(const struct qcow2 *s, const struct qcow2_l2_entry *e,
                                        uint64_t off)
{
    return LIKELY(!s->geo.data_file) || !e->placed ||
           e->host == align_down(off, s->cluster_size);
}

/* What maps the beginning of [off, off+len): the longest run of one kind (in one
 * place, where it has one) that can be told without loading more than a slice. */
MUST_CHECK int co_qcow2_map(struct qcow2 *s, uint64_t off, uint64_t len,
                            struct qcow2_extent *ret);
int co_qcow2_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret);

/* ---- subcluster.c: with extended L2 entries ------------------------------ */

/* The same from the entry @index of @slice on; never MIXED. */
MUST_CHECK int qcow2_map_subclusters(const struct qcow2 *s, const void *slice, uint32_t index,
                                     uint64_t off, uint64_t len, struct qcow2_extent *ret);
/* Where data for the beginning of [off, off+len) goes: in place for NORMAL with
 * copied, to the host cluster that is there for MIXED with copied, else to new ones.
 * The run ends with a cluster or the range; ret->entry is its first cluster's. */
MUST_CHECK int co_qcow2_map_clusters(struct qcow2 *s, uint64_t off, uint64_t len,
                                     struct qcow2_extent *ret);
/* The subclusters of @cluster that [off, off+len) touches. It does touch it. */
uint32_t qcow2_touched(const struct qcow2 *s, uint64_t cluster, uint64_t off, uint64_t len);
/* Whether the subcluster of guest offset @off, in a cluster of entry @e, reads as zero. */
bool qcow2_subcluster_is_zero(const struct qcow2 *s, const struct qcow2_l2_entry *e, uint64_t off);

/* What map clusters for a write. */
MUST_CHECK static inline int co_qcow2_map_for_write(struct qcow2 *s, uint64_t off, uint64_t len,
                                                    struct qcow2_extent *ret)
{
    return UNLIKELY(s->geo.extended) ? co_qcow2_map_clusters(s, off, len, ret)
                                     : co_qcow2_map(s, off, len, ret);
}

/* ---- l2.c ---------------------------------------------------------------- */

/* Where the L2 entry of a guest cluster is. */
struct qcow2_l2_place {
    uint64_t slice;              /* host offset of the slice; 0: there is no table */
    uint32_t index;              /* of the entry in the slice */
};

/* The slice with the entry of guest offset @off, in the cache, NULL if there is no
 * L2 table. ret->... may be used until the next suspension. */
MUST_CHECK int co_qcow2_l2_get(struct qcow2 *s, uint64_t off, const void **ret_slice,
                               struct qcow2_l2_place *ret);
/* The same for writing: makes the table, or a copy of one that is shared. The
 * slice is in the cache, to be changed with qcow2_cache_modify at once. */
MUST_CHECK int co_qcow2_l2_get_writable(struct qcow2 *s, uint64_t off,
                                        struct qcow2_l2_place *ret);
/* Whether the table of L1 entry @index is being made, or copied, now. */
bool qcow2_l2_is_made(const struct qcow2 *s, uint32_t index);
/* Give up the references that an entry, which is overwritten now, had. */
void qcow2_drop_entry(struct qcow2 *s, const struct qcow2_l2_entry *e, bool punch);
extern const struct qcow2_cache_ops qcow2_l2_cache_ops;

/* ---- alloc.c ------------------------------------------------------------- */

int co_qcow2_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                     unsigned flags);
/* Write [off, off+len) step by step, whatever maps it. Inside a request. */
MUST_CHECK int co_qcow2_write_run(struct qcow2 *s, uint64_t off, uint64_t len,
                                  const struct iovec *iov, int niov, unsigned flags);
/* Wait if guest cluster @first is claimed: true, look at everything again. Else *n
 * is cut to the clusters from there on that no claim is on. */
bool co_qcow2_wait_claim(struct qcow2 *s, uint64_t first, uint32_t *n);

/* ---- cow.c --------------------------------------------------------------- */

/* A write of guest data to host clusters that have none of it yet, with what
 * surrounds it there. */
struct qcow2_fill {
    uint64_t off, len;           /* guest range of the data */
    const struct iovec *iov;
    int niov;
    unsigned flags;
    uint64_t host;               /* where the data goes */
    uint32_t head, tail;         /* bytes before and behind it to be filled too */
    bool source_zero;            /* there the guest reads zeros now */
    bool host_zero;              /* and so does the host */
};
MUST_CHECK int co_qcow2_fill(struct qcow2 *s, const struct qcow2_fill *f);
/* Whether it writes the data only: nothing around it. */
bool qcow2_fill_is_plain(const struct qcow2_fill *f);

/* ---- io.c ---------------------------------------------------------------- */

int co_qcow2_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                    unsigned flags);
/* The same inside a request; past the end of the disk it must not reach. */
MUST_CHECK int co_qcow2_read(struct qcow2 *s, uint64_t off, uint64_t len,
                             const struct iovec *iov, int niov, unsigned flags);

/* A request in several pieces that are under way together, at most
 * LIMIT_QCOW2_PIECES of them. */
struct qcow2_pieces {
    struct qcow2 *s;
    unsigned flags;
    int (*co_run)(struct qcow2 *s, const struct qcow2_extent *e, uint64_t off, uint64_t len,
                  const struct iovec *iov, int niov, unsigned flags);
    unsigned running;
    int result;                  /* of the first that failed */
    struct waitq changed;
};
void qcow2_pieces_init(struct qcow2_pieces *p);
/* Start the piece [off, off+len), whose data is [at, at+len) of @iov. */
void co_qcow2_piece(struct qcow2_pieces *p, const struct qcow2_extent *e, uint64_t off,
                    const struct iovec *iov, int niov, uint64_t at);
MUST_CHECK int co_qcow2_pieces_wait(struct qcow2_pieces *p);

/* ---- compress.c ---------------------------------------------------------- */

/* Read [at, at+len) of the compressed cluster that @e describes. */
MUST_CHECK int co_qcow2_read_compressed(struct qcow2 *s, const struct qcow2_l2_entry *e,
                                        uint64_t at, uint64_t len, const struct iovec *iov,
                                        int niov, unsigned flags);
/* Forget what was unpacked from the host clusters, which are free now. */
void qcow2_unpacker_drop(struct qcow2 *s, uint64_t first, uint32_t n);
void qcow2_unpacker_free(struct qcow2_unpacker *u);

/* ---- pack.c -------------------------------------------------------------- */

/* Write whole clusters (the last of the disk may be cut off by its end; else -EINVAL)
 * compressed, where that makes them smaller. */
MUST_CHECK int co_qcow2_write_compressed(struct qcow2 *s, uint64_t off, uint64_t len,
                                         const struct iovec *iov, int niov, unsigned flags);
/* Lay nothing more into these host clusters: their references are being given up. */
void qcow2_pack_close(struct qcow2 *s, uint64_t first, uint64_t n);
void qcow2_packers_free(struct qcow2 *s);

/* ---- discard.c ----------------------------------------------------------- */

int co_qcow2_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int co_qcow2_discard(struct node *n, uint64_t off, uint64_t len);
/* Bytes that are zero, for data to write. */
#define QCOW2_ZEROS_BYTES 65536
extern const uint8_t qcow2_zeros[QCOW2_ZEROS_BYTES];

/* Make what the guest reads in [off, off+len) zero, where no backing file may show. */
MUST_CHECK int co_qcow2_zero_range(struct qcow2 *s, uint64_t off, uint64_t len);
/* Make @n guest clusters from @first as if they were never written, behind the end of
 * the disk too. */
MUST_CHECK int co_qcow2_forget_clusters(struct qcow2 *s, uint64_t first, uint64_t n);
/* Make the whole disk as if nothing had ever been written to it. */
MUST_CHECK int co_qcow2_forget_all(struct qcow2 *s);

/* ---- resize.c ------------------------------------------------------------ */

bool co_qcow2_resize(struct node *n, uint64_t size, struct err *err);
/* Bring all metadata to the disk, and then the new size. */
MUST_CHECK int co_qcow2_set_size(struct qcow2 *s, uint64_t size);

/* ---- shrink.c ------------------------------------------------------------ */

/* Make the disk smaller. After a failure it has the old or the new size. */
MUST_CHECK int co_qcow2_shrink(struct qcow2 *s, uint64_t size);

/* ---- sync.c -------------------------------------------------------------- */

int co_qcow2_flush(struct node *n);
/* Flush the file that has the guest's data, if that is not the image file. */
MUST_CHECK int co_qcow2_flush_data(struct qcow2 *s);
/* Flush the image file. Once that has failed it fails for ever (I-Q9). */
MUST_CHECK int co_qcow2_flush_file(struct qcow2 *s);
/* Bring all metadata to the disk in the order of I-Q1 .. I-Q4. */
MUST_CHECK int co_qcow2_sync(struct qcow2 *s);
/* The same for a caller that holds sync_lock: what is in memory at the call is on
 * the disk after it. */
MUST_CHECK int co_qcow2_sync_locked(struct qcow2 *s);
/* The same in the background, if much is dirty. Does not suspend. */
void qcow2_sync_soon(struct qcow2 *s);
/* Their references are given up once no entry on disk names them. Does not suspend. */
void qcow2_drop_clusters(struct qcow2 *s, uint64_t first, uint32_t n, bool punch);
/* Wait until what is in `freed` now can be allocated. Not inside a request. */
void co_qcow2_wait_freed(struct qcow2 *s);
/* Wait until nothing happens in the background; for an idle node. */
void co_qcow2_quiesce(struct qcow2 *s);

/* A request that uses host offsets which it found in an L2 entry stands between
 * these: a cluster is not given to another before every request has ended that
 * began before its entry went (I-Q5). */
static inline unsigned qcow2_enter(struct qcow2 *s)
{
    s->in_flight[s->epoch & 1]++;
    return s->epoch & 1;
}

static inline void qcow2_leave(struct qcow2 *s, unsigned entered)
{
    if (--s->in_flight[entered] == 0 && !waitq_empty(&s->drained))
        waitq_wake_all(&s->drained);
}

/* ---- datafile.c: guest data in a file of its own -------------------------- */

/* Set s->data: open the data file, if the image has one, as the option says or else
 * the header names it. The header is read. */
MUST_CHECK bool co_qcow2_open_data_file(struct qcow2 *s, const struct schema_alt *option,
                                        struct err *err);
/* Make [off, off+len) of it zero. @flags: REQ_ flags of a zero write. */
MUST_CHECK int co_qcow2_zero_data(struct qcow2 *s, uint64_t off, uint64_t len, unsigned flags);

/* ---- backing.c ----------------------------------------------------------- */

/* Open the backing file that the header names as the child "backing", as it names
 * it: by its rules (image_dirs.h) and with the format that it says. */
MUST_CHECK bool co_qcow2_open_named_backing(struct qcow2 *s, struct err *err);
/* What to open for @name, which the header names as its @what ("backing file"): a
 * path, or an URI. NULL with @err when an image may not name that; @option would
 * be the way to say it. free() it. Suspends. */
char *co_qcow2_resolve_name(struct qcow2 *s, const char *name, const char *what,
                            const char *option, struct err *err);

#endif
