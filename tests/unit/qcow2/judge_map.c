/* SPDX-License-Identifier: Apache-2.0
 *
 * Block status of this driver beside qemu-img map, byte for byte.
 */
#include "model.h"

/* What one of them says of a range. */
struct said {
    uint64_t end;
    bool data, zero, has_offset;
    unsigned depth;
    uint64_t offset;             /* of the byte that was asked for */
};

static struct said qemu_says(json_t *map, size_t *i, uint64_t at)
{
    for (;; ++*i) {
        json_t *e = json_array_get(map, *i);
        uint64_t start = (uint64_t)json_integer_value(json_object_get(e, "start"));
        uint64_t end = start + (uint64_t)json_integer_value(json_object_get(e, "length"));
        json_t *offset = json_object_get(e, "offset");

        if (!e)
            fail_msg("qemu-img map ends before byte %" PRIu64, at);
        if (at < end)
            return (struct said){
                .end = end, .data = json_is_true(json_object_get(e, "data")),
                .zero = json_is_true(json_object_get(e, "zero")), .has_offset = offset,
                .depth = (unsigned)json_integer_value(json_object_get(e, "depth")),
                .offset = (uint64_t)json_integer_value(offset) + at - start,
            };
    }
}

static struct said co_we_say(struct node *n, uint64_t at)
{
    struct block_status st;
    unsigned depth;

    assert_int_equal(co_node_status_above(n, NULL, at, node_size(n) - at, &st, &depth), 0);
    return (struct said){
        .end = at + st.len, .data = st.flags & STATUS_DATA, .zero = st.flags & STATUS_ZERO,
        .has_offset = st.flags & STATUS_OFFSET, .offset = st.host_off,
        .depth = depth,
    };
}

/* Two differences are allowed: where there is no data QEMU tells of clusters that are
 * kept for it, and of preallocated ones it looks into the file for what was never
 * written and so is zero. We do neither. */
static void expect_agreement(const struct model *m, uint64_t at, const struct said *qemu,
                             const struct said *we)
{
    bool never_written = qemu->data && qemu->zero && !m->shadow[at];

    if (qemu->data == we->data && (qemu->zero == we->zero || never_written) &&
        (!qemu->data || (qemu->depth == we->depth && qemu->has_offset == we->has_offset)) &&
        (!qemu->data || !we->has_offset || qemu->offset == we->offset))
        return;
    fail_msg("%s, seed %" PRIu64 ", byte %" PRIu64 ": qemu-img map says data %d zero %d depth %u "
             "offset %" PRId64 ", we say data %d zero %d depth %u offset %" PRId64,
             m->shape->name, m->first_seed, at, qemu->data, qemu->zero, qemu->depth,
             qemu->has_offset ? (int64_t)qemu->offset : -1, we->data, we->zero, we->depth,
             we->has_offset ? (int64_t)we->offset : -1);
}

void co_model_judge_map(struct model *model)
{
    json_t *map;
    struct node *n;
    size_t i = 0;

    must_run("qemu-img map -f qcow2 --output=json %s >map.json", model->image);
    map = json_load_file(work_path("map.json"), 0, NULL);
    assert_non_null(map);
    n = co_open_image(model->image, ", 'read-only': true");
    for (uint64_t at = 0; at < model->size;) {
        struct said qemu = qemu_says(map, &i, at), we = co_we_say(n, at);

        expect_agreement(model, at, &qemu, &we);
        at = MIN(qemu.end, we.end);
    }
    co_node_unref(n);
    json_decref(map);
}
