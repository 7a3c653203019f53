/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk in an image and its shadow, a plain array of bytes, with random
 * operations by several coroutines on both. Operations in flight do not overlap
 * (those that would wait for each other), so the shadow is exact; they meet inside
 * clusters, tables and caches. One model at a time.
 */
#ifndef TESTS_QCOW2_MODEL_H
#define TESTS_QCOW2_MODEL_H

#include "qcow2_test.h"

enum backing { NO_BACKING, RAW_BACKING, QCOW2_BACKING };

struct shape {
    const char *name;
    uint32_t cluster, refcount_bits, version;
    uint64_t size;
    enum backing backing;
    uint64_t backing_size;
    const char *options;         /* of the node, beginning with a comma */
    unsigned ops;
    bool extended;               /* with subclusters */
    bool compress;               /* some of the writes are compressed */
    enum qcow2_compression compression;
    bool data_file, raw_data;    /* data is in a file of its own, and has to be raw there */
    bool snapshot;               /* the test has QEMU take one before it begins */
    const char *create;          /* QEMU makes it, with these options; NULL: this driver */
    bool resize;                 /* operations may change the size, up to room */
    bool shrink;                 /* down, too */
    uint64_t room;               /* bytes of the shadow; 0: size */
};

/* Options that keep next to nothing in memory. */
#define TINY_CACHES ", 'l2-cache-size': 4096, 'refcount-cache-size': 4096, " \
                    "'l2-cache-entry-size': 512"

#define LAZY ", 'lazy-refcounts': true"

struct model {
    const struct shape *shape;
    const char *image;           /* its file in work_dir(); model.qcow2 unless the test says */
    uint64_t size;               /* of the disk now */
    uint64_t seed, first_seed;
    struct node *node;           /* the open image; the test opens and closes it */
    unsigned char *shadow;
    unsigned char *touched;      /* a byte for each 512: changed since the test cleared it */
    unsigned left;               /* operations to do */
    unsigned char next_byte;
    struct list busy;            /* ranges of operations in flight */
    struct waitq freed;
    bool resizing;               /* an operation does */
    bool resized;                /* one did, since the test cleared it */
    uint64_t smallest;           /* bytes that the disk had at least, since the test set it */
    bool lenient;                /* parts of clusters need not read as zero after discards */
    bool may_fail;               /* operations may; the shadow does not count then */
    int failure;                 /* of the first that did */
};

/* Make model.qcow2 in work_dir(), empty, with its backing file. */
void co_model_init(struct model *model, const struct shape *shape, uint64_t seed);
/* The same without an image: the test makes it. */
void model_init(struct model *model, const struct shape *shape, uint64_t seed);
/* Its backing file as the shape says, and what of it the disk shows. */
void model_make_backing(struct model *model);
/* Make the image that the shape describes as @name, over @backing (NULL: none) of
 * @format; nothing is done to the shadow. */
void co_model_make(const struct shape *shape, const char *name, const char *backing,
                   const char *format);
void model_done(struct model *model);

/* @ops random operations. */
void co_model_work(struct model *model, unsigned ops);
/* The disk reads as the shadow. */
void co_model_compare(struct model *model, const char *when);
/* The closed image is sound, and QEMU reads the shadow from it. */
void model_judge(struct model *model);
/* QEMU and this driver say the same of the closed image: where data and holes are,
 * in which layer, at which offset (judge_map.c). */
void co_model_judge_map(struct model *model);
/* QEMU has its turn with the closed image: @n random operations by qemu-io, on the
 * shadow too (peer_turn.c). */
void model_peer_turn(struct model *model, unsigned n);
/* The script of that alone, turn.txt for some qemu-io. */
void model_peer_script(struct model *model, unsigned n);

/* A file of these bytes in work_dir(). */
void save_file(const char *name, const unsigned char *data, uint64_t len);

#endif
