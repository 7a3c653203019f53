/* SPDX-License-Identifier: Apache-2.0
 *
 * null-co: a disk without storage, for measuring everything else. Writes vanish,
 * reads give zeros, each after a chosen latency.
 */
#include "base/iov.h"
#include "drivers/drivers.h"
#include "loop/co_sync.h"
#include <inttypes.h>
#include <stdio.h>

#define NULL_SIZE_DEFAULT GiB

struct null_options {
    bool has_size;
    uint64_t size;
    bool has_latency_ns;
    uint64_t latency_ns;
    bool has_read_zeroes, read_zeroes;
};

struct null_state {
    uint64_t latency_ns;
    bool read_zeroes;
};

static bool co_null_open(struct node *n, const void *opts, struct err *err)
{
    const struct null_options *o = opts;
    struct null_state *s = n->state;

    n->size = o->has_size ? o->size : NULL_SIZE_DEFAULT;
    if (n->size > INT64_MAX)
        return err_set(err, -EINVAL, "size %" PRIu64 " is too large", n->size);
    s->latency_ns = o->latency_ns;
    s->read_zeroes = o->read_zeroes;
    n->limits.request_align = 1;
    n->limits.write_flags = REQ_FUA;
    n->limits.zero_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    n->zero_init = s->read_zeroes;
    return true;
}

static int co_null_nothing(struct node *n)
{
    struct null_state *s = n->state;

    if (s->latency_ns)
        co_sleep(s->latency_ns);
    return 0;
}

/* QEMU leaves the buffer as it is without read-zeroes: whatever the memory held
 * before, perhaps another disk's data, would go to a client. */
static int co_null_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                          int niov, unsigned flags)
{
    iov_zero(iov, niov, 0, len);
    return co_null_nothing(n);
}

static int co_null_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                           int niov, unsigned flags)
{
    return co_null_nothing(n);
}

static int co_null_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    return co_null_nothing(n);
}

static int co_null_discard(struct node *n, uint64_t off, uint64_t len)
{
    return co_null_nothing(n);
}

/* Without read-zeroes it is reported as data, so that a copy really reads. */
static int co_null_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    struct null_state *s = n->state;

    *ret = (struct block_status){
        .flags = STATUS_ALLOCATED | (s->read_zeroes ? STATUS_ZERO : STATUS_DATA),
        .len = len,
    };
    return 0;
}

static bool co_null_resize(struct node *n, uint64_t size, struct err *err)
{
    n->size = size;
    return true;
}

static void null_get_info(struct node *n, struct node_info *ret)
{
    ret->allocated = 0;
    ret->can_write_zeroes_fast = true;
    snprintf(ret->filename, sizeof(ret->filename), "null-co://");
}

static const struct schema_member null_members[] = {
    SCHEMA_OPTIONAL(struct null_options, size, "size", &schema_size, "bytes; default 1 GiB"),
    SCHEMA_OPTIONAL(struct null_options, latency_ns, "latency-ns", &schema_size,
                    "how long a request takes; default 0"),
    SCHEMA_OPTIONAL(struct null_options, read_zeroes, "read-zeroes", &schema_bool,
                    "say that it is all zeros, so that copies skip it; default off"),
    SCHEMA_END,
};

static const struct schema_type null_options_type = {
    .name = "BlockdevOptionsNull",
    .kind = SCHEMA_STRUCT,
    .doc = "a disk without storage, for measurements",
    .size = sizeof(struct null_options),
    .members = null_members,
};

const struct driver null_co_driver = {
    .name = "null-co",
    .doc = "a disk without storage, for measurements",
    .state_size = sizeof(struct null_state),
    .options = &null_options_type,
    .is_protocol = true,
    .co_open = co_null_open,
    .co_preadv = co_null_preadv,
    .co_pwritev = co_null_pwritev,
    .co_write_zeroes = co_null_write_zeroes,
    .co_discard = co_null_discard,
    .co_flush = co_null_nothing,
    .co_status = co_null_status,
    .co_resize = co_null_resize,
    .get_info = null_get_info,
};
