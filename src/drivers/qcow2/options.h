/* SPDX-License-Identifier: Apache-2.0
 *
 * What blockdev-add takes for a qcow2 node: QAPI BlockdevOptionsQcow2 (QEMU
 * qapi/block-core.json), and "snapshot".
 */
#ifndef QCOW2_OPTIONS_H
#define QCOW2_OPTIONS_H

#include "base/schema.h"

struct qcow2_options {
    struct schema_alt file;
    bool has_backing;
    struct schema_alt backing;
    bool has_lazy_refcounts, lazy_refcounts;
    bool has_pass_discard_request, pass_discard_request;
    bool has_pass_discard_snapshot, pass_discard_snapshot;
    bool has_pass_discard_other, pass_discard_other;
    bool has_discard_no_unref, discard_no_unref;
    bool has_overlap_check;
    json_t *overlap_check;
    bool has_cache_size;
    uint64_t cache_size;
    bool has_l2_cache_size;
    uint64_t l2_cache_size;
    bool has_l2_cache_entry_size;
    uint64_t l2_cache_entry_size;
    bool has_refcount_cache_size;
    uint64_t refcount_cache_size;
    bool has_cache_clean_interval;
    int64_t cache_clean_interval;
    bool has_snapshot;
    char *snapshot;
    bool has_encrypt;
    json_t *encrypt;
    bool has_data_file;
    struct schema_alt data_file;
};
extern const struct schema_type qcow2_options_type;

/* How much the metadata caches of an image may hold. */
struct qcow2_cache_sizes {
    uint32_t l2_slice, refcount_slice;       /* bytes of an entry */
    uint64_t l2_entries, refcount_entries;
};

/* Judge the options that do not depend on the image. */
MUST_CHECK bool qcow2_options_check(const struct qcow2_options *o, struct err *err);
/* @l2_bytes: of all L2 tables that the image can have. */
MUST_CHECK bool qcow2_cache_sizes(const struct qcow2_options *o, uint64_t cluster_size,
                                  uint64_t l2_bytes, struct qcow2_cache_sizes *ret,
                                  struct err *err);

#endif
