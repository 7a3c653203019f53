/* SPDX-License-Identifier: Apache-2.0
 *
 * The options of a qcow2 node: their description, and what they come to. Those
 * that QEMU has and that change nothing here are taken and say so.
 */
#include "drivers/qcow2/options.h"
#include "base/limits.h"
#include "block/graph.h"
#include "drivers/qcow2/cache.h"
#include <inttypes.h>

#define L2_CACHE_DEFAULT (32 * MiB)       /* at most; QEMU's too */
#define REFCOUNT_CACHE_DEFAULT (2 * MiB)
#define SLICE_DEFAULT 4096U

#define O(field, json, type, doc) SCHEMA_OPTIONAL(struct qcow2_options, field, json, type, doc)

static const struct schema_member members[] = {
    SCHEMA_REQUIRED(struct qcow2_options, file, "file", &blockdev_ref_type,
                    "the image file"),
    O(backing, "backing", &blockdev_ref_or_null_type,
      "the backing file (default: what the image names); null: none"),
    O(lazy_refcounts, "lazy-refcounts", &schema_bool,
      "write refcounts on closing only; after a crash they are repaired (default: as the image "
      "says)"),
    O(pass_discard_request, "pass-discard-request", &schema_bool,
      "discard in the file what guests discard (default: on if discard=unmap)"),
    O(pass_discard_snapshot, "pass-discard-snapshot", &schema_bool,
      "discard in the file what deleted snapshots free (default: on)"),
    O(pass_discard_other, "pass-discard-other", &schema_bool,
      "discard in the file what else becomes free (default: off)"),
    O(discard_no_unref, "discard-no-unref", &schema_bool,
      "keep the clusters that guests discard for later writes (default: off)"),
    O(overlap_check, "overlap-check", &schema_any,
      "no effect: writes over metadata are always refused"),
    O(cache_size, "cache-size", &schema_size, "memory for both metadata caches, bytes"),
    O(l2_cache_size, "l2-cache-size", &schema_size, "memory for L2 tables, bytes (default: what "
      "all of them need, at most 32M)"),
    O(l2_cache_entry_size, "l2-cache-entry-size", &schema_size,
      "bytes of L2 table loaded at once (default: 4k)"),
    O(refcount_cache_size, "refcount-cache-size", &schema_size,
      "memory for refcount blocks, bytes (default: 2M)"),
    O(snapshot, "snapshot", &schema_str,
      "read the disk as it was at this internal snapshot, by its id or name; with read-only"),
    O(cache_clean_interval, "cache-clean-interval", &schema_int,
      "no effect: caches hold what they have until it is pushed out"),
    O(encrypt, "encrypt", &schema_any, "refused: encryption is not supported"),
    O(data_file, "data-file", &blockdev_ref_type,
      "the file with the guest's data, of an image that has one (default: what the image names)"),
    SCHEMA_END,
};

const struct schema_type qcow2_options_type = {
    .name = "BlockdevOptionsQcow2",
    .kind = SCHEMA_STRUCT,
    .doc = "an image in QEMU's format: sparse, with a backing file",
    .size = sizeof(struct qcow2_options),
    .members = members,
};

static bool check_overlap_check(const struct qcow2_options *o, struct err *err)
{
    static const char *const modes[] = { "none", "constant", "cached", "all" };
    const char *mode = json_string_value(o->overlap_check);

    if (!o->has_overlap_check || json_is_object(o->overlap_check))
        return true;
    for (size_t i = 0; mode && i < ARRAY_SIZE(modes); i++) {
        if (strcmp(mode, modes[i]) == 0)
            return true;
    }
    return err_set(err, -EINVAL, "Parameter 'overlap-check' does not accept value '%s'",
                   mode ? mode : "(not a string)");
}

bool qcow2_options_check(const struct qcow2_options *o, struct err *err)
{
    if (o->has_encrypt)
        return err_set(err, -ENOTSUP, "encrypted qcow2 images are not supported");
    /* QEMU block/qcow2.c, read_cache_sizes. */
    if (o->has_cache_size && o->has_l2_cache_size && o->has_refcount_cache_size)
        return err_set(err, -EINVAL, "cache-size, l2-cache-size and refcount-cache-size may not "
                       "be set at the same time");
    if (o->has_cache_size && o->has_l2_cache_size && o->l2_cache_size > o->cache_size)
        return err_set(err, -EINVAL, "l2-cache-size may not exceed cache-size");
    if (o->has_cache_size && o->has_refcount_cache_size && o->refcount_cache_size > o->cache_size)
        return err_set(err, -EINVAL, "refcount-cache-size may not exceed cache-size");
    return check_overlap_check(o, err);
}

static bool check_size(const char *name, uint64_t bytes, struct err *err)
{
    if (bytes > LIMIT_QCOW2_CACHE_BYTES)
        return err_set(err, -EINVAL, "%s may not exceed %llu bytes", name,
                       LIMIT_QCOW2_CACHE_BYTES);
    return true;
}

bool qcow2_cache_sizes(const struct qcow2_options *o, uint64_t cluster_size, uint64_t l2_bytes,
                       struct qcow2_cache_sizes *ret, struct err *err)
{
    uint64_t slice = o->has_l2_cache_entry_size ? o->l2_cache_entry_size
                                                : MIN(cluster_size, SLICE_DEFAULT);
    uint64_t refcounts = o->has_refcount_cache_size ? o->refcount_cache_size
                                                    : REFCOUNT_CACHE_DEFAULT;
    uint64_t l2 = o->has_l2_cache_size ? o->l2_cache_size : L2_CACHE_DEFAULT;

    if (!is_power_of_2(slice) || slice < 512 || slice > cluster_size)
        return err_set(err, -EINVAL, "L2 cache entry size must be a power of two between 512 and "
                       "the cluster size (%" PRIu64 ")", cluster_size);
    if (o->has_cache_size && !o->has_l2_cache_size) {
        /* L2 first: refcounts are only needed for allocating. */
        if (!o->has_refcount_cache_size)
            refcounts = MIN(REFCOUNT_CACHE_DEFAULT, o->cache_size / 4);
        l2 = o->cache_size - refcounts;
    } else if (o->has_cache_size) {
        refcounts = o->cache_size - l2;
    }
    if (!check_size("l2-cache-size", l2, err) || !check_size("refcount-cache-size", refcounts, err))
        return false;
    ret->l2_slice = (uint32_t)slice;
    ret->refcount_slice = MIN((uint32_t)cluster_size, SLICE_DEFAULT);
    ret->l2_entries = MIN(l2, l2_bytes) / slice;
    ret->refcount_entries = refcounts / ret->refcount_slice;
    return true;
}
