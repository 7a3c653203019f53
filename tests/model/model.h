/* SPDX-License-Identifier: Apache-2.0
 *
 * The seeded model of a disk that is backed up while it is written. A run is one
 * seed: it picks the images, the writers' habits, the backups, what goes wrong and
 * when. The disk has a shadow in memory; a backup has to be the shadow as it was
 * while the doors were shut for its start.
 *
 *   model_images.c   image files: making, opening, closing
 *   model_shadow.c   what the disk has to be, and to have been
 *   model_guest.c    writers
 *   model_run.c      one backup from its start to the comparison
 *   model_chain.c    one after the other by a bitmap, full and incremental
 *   model_backup.c   main: seeds, one run after the other
 */
#ifndef TESTS_MODEL_H
#define TESTS_MODEL_H

#include "block/disk.h"
#include "job/backup.h"

enum model_format { MODEL_RAW, MODEL_QCOW2 };

/* The content of a disk as far as it is known: after a discard or a failed write
 * nobody knows what a byte is. */
struct shadow {
    uint8_t *bytes;
    uint8_t *known;
};

struct model {
    uint64_t seed, rng;
    const char *dir;             /* of this run's images */
    bool peers;                  /* let qemu-img judge as well */
    bool verbose;
    bool chains;                 /* of backups by bitmaps, and fewer others */

    uint64_t size;
    enum model_format format;
    char backing[300], backing_format[16];   /* of the source; empty: none */
    char path[300];              /* of the source */
    struct node *source;
    struct disk_user *guest;
    struct node *source_fault;   /* the fault node under the source */

    struct shadow now;
    struct list writing;         /* ranges that a writer is at: struct claim */
    struct list watches;
    unsigned writers;
    bool stop;
    unsigned holds;              /* who wants the writers to rest */
    unsigned held;               /* writers that do */
    struct waitq go, still;
    uint64_t longest_ns;         /* a guest's request */
    bool limited;                /* by a scratch limit: guests wait for slow drains */
    unsigned n_images;
    unsigned passed, failed, cancelled;   /* backups */
};

/* Says the seed and ends the program. */
void model_fail(struct model *m, const char *fmt, ...) PRINTF_LIKE(2, 3)
    __attribute__((noreturn));

uint64_t model_random(struct model *m, uint64_t n);
static inline bool one_in(struct model *m, uint64_t n)
{
    return model_random(m, n) == 0;
}

/* ---- images -------------------------------------------------------------------- */

struct image {
    char path[300];
    enum model_format format;
    struct node *node, *fault;   /* references; NULL while closed */
};

struct image_opts {
    enum model_format format;
    const char *backing, *backing_format;    /* qcow2; NULL: none */
    uint32_t cluster_size;                   /* qcow2 */
};

/* A new file with a name of its own. */
void co_image_create(struct model *m, struct image *im, const struct image_opts *o);
/* Open it over a fault node. qcow2: with its backing file only if @backing. */
void co_image_open(struct model *m, struct image *im, bool backing, bool read_only);
void co_image_close(struct image *im);
void image_delete(struct image *im);
/* Whether its file is open in a node still. */
bool image_is_open(const struct image *im);

/* ---- guest --------------------------------------------------------------------- */

void shadow_copy(struct model *m, struct shadow *to, const struct shadow *from);
void shadow_free(struct shadow *s);
/* Compare what is known. @what is said to people. */
void shadow_expect(struct model *m, const struct shadow *s, const uint8_t *got, const char *what);

/* Writes that were under way while somebody watched: each has to be in or out as
 * a whole. */
struct watch {
    struct list link;            /* model->watches */
    struct list seen;
};
void watch_begin(struct model *m, struct watch *w);
/* Makes what the writes touch unknown in @frozen. */
void watch_end(struct model *m, struct watch *w, struct shadow *frozen);
void watch_expect(struct model *m, const struct watch *w, const uint8_t *got, const char *what);
void watch_free(struct watch *w);

/* Data of random kind. */
void model_fill(struct model *m, uint8_t *buf, uint64_t len);

/* Make the source, fill it and its shadow, put a guest on it. */
void co_guest_begin(struct model *m, struct image *source, struct image *backing);
void guest_start_writers(struct model *m, unsigned n);
/* Let the writers come to rest; let them go on. Nests. */
void co_guest_hold(struct model *m);
void guest_go(struct model *m);
/* All of the disk as the guest sees it; to be freed. */
uint8_t *co_guest_read(struct model *m);

/* ---- one backup ---------------------------------------------------------------- */

void co_model_backup(struct model *m, unsigned index);

/* ---- backups by a bitmap ------------------------------------------------------- */

void co_model_chain(struct model *m, unsigned index);

#endif
