/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: whatever guests do at the same time, an image reads as a plain array of
 * bytes would, and QEMU finds it sound and with the same content.
 * Method: seeded random operations against a shadow (model.h) over a table of
 * shapes of images, closed and opened again in the middle. Repeat one run with
 * STILLPOINT_SEED, one shape with STILLPOINT_SHAPE; STILLPOINT_ROUNDS makes it longer.
 */
#include "model.h"
#include <unistd.h>

static const struct shape shapes[] = {
    { "64k", 65536, 16, 3, 8 * MiB, NO_BACKING, 0, "", 400 },
    { "64k-unmap", 65536, 16, 3, 8 * MiB, NO_BACKING, 0, ", 'discard': 'unmap'", 400 },
    { "64k-v2", 65536, 16, 2, 8 * MiB, NO_BACKING, 0, ", 'discard': 'unmap'", 400 },
    { "512-lazy", 512, 16, 3, 1 * MiB, NO_BACKING, 0, LAZY TINY_CACHES ", 'discard': 'unmap'",
      300 },
    { "64k-data-over-raw", 65536, 16, 3, 5 * MiB, RAW_BACKING, 3 * MiB + 512,
      ", 'discard': 'unmap'", 300, .data_file = true, .resize = true, .room = 8 * MiB },
    { "64k-data-raw", 65536, 16, 3, 5 * MiB + 512, NO_BACKING, 0, LAZY ", 'discard': 'unmap'", 300,
      .data_file = true, .raw_data = true, .resize = true, .room = 8 * MiB },
    { "512-data-raw", 512, 16, 3, 1 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 200,
      .data_file = true, .raw_data = true },
    { "64k-extended-data-over-qcow2", 65536, 16, 3, 4 * MiB, QCOW2_BACKING, 3 * MiB,
      ", 'discard': 'unmap'", 300, .extended = true, .data_file = true },
    { "16k-extended-data-raw", 16384, 16, 3, 2 * MiB + 512, NO_BACKING, 0,
      ", 'discard': 'unmap'", 200, .extended = true, .data_file = true, .raw_data = true },
    { "64k-over-raw", 65536, 16, 3, 8 * MiB, RAW_BACKING, 8 * MiB, ", 'discard': 'unmap'", 400 },
    { "64k-over-shorter-raw", 65536, 16, 3, 8 * MiB, RAW_BACKING, 3 * MiB + 1536, "", 400 },
    { "64k-over-longer-qcow2", 65536, 16, 3, 4 * MiB + 512, QCOW2_BACKING, 8 * MiB,
      ", 'discard': 'unmap'", 400 },
    { "64k-v2-over-shorter-qcow2", 65536, 16, 2, 8 * MiB, QCOW2_BACKING, 5 * MiB,
      ", 'discard': 'unmap'", 400 },
    { "512-refcount1", 512, 1, 3, 2 * MiB + 512, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'",
      600 },
    { "512-refcount64", 512, 64, 3, 2 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'",
      600 },
    { "512-refcount64-over-raw", 512, 64, 3, 1 * MiB, RAW_BACKING, 600 * KiB, TINY_CACHES, 600 },
    { "1k-refcount2", 1024, 2, 3, 3 * MiB, NO_BACKING, 0, TINY_CACHES, 500 },
    { "2k-refcount4-over-qcow2", 2048, 4, 3, 3 * MiB, QCOW2_BACKING, 3 * MiB,
      TINY_CACHES ", 'discard': 'unmap'", 500 },
    { "4k-refcount8", 4096, 8, 3, 6 * MiB, NO_BACKING, 0,
      TINY_CACHES ", 'discard': 'unmap', 'pass-discard-other': true", 500 },
    { "4k-refcount32-no-unref", 4096, 32, 3, 6 * MiB, NO_BACKING, 0,
      ", 'discard': 'unmap', 'discard-no-unref': true", 500 },
    { "2M", 2 * MiB, 16, 3, 24 * MiB, NO_BACKING, 0, ", 'discard': 'unmap'", 150 },
    { "2M-over-raw", 2 * MiB, 16, 3, 20 * MiB + 4096, RAW_BACKING, 13 * MiB, "", 150 },
    { "64k-zlib-over-raw", 65536, 16, 3, 8 * MiB, RAW_BACKING, 5 * MiB,
      ", 'discard': 'unmap', 'pass-discard-other': true", 300, .compress = true },
    { "64k-zstd-extended-over-raw", 65536, 16, 3, 8 * MiB, RAW_BACKING, 5 * MiB + 512,
      ", 'discard': 'unmap'", 300, .extended = true, .compress = true,
      .compression = QCOW2_COMPRESSION_ZSTD },
    { "512-zstd-refcount1", 512, 1, 3, 512 * KiB, NO_BACKING, 0, TINY_CACHES, 300,
      .compress = true, .compression = QCOW2_COMPRESSION_ZSTD },
    { "4k-zlib-refcount2-v3", 4096, 2, 3, 3 * MiB, QCOW2_BACKING, 2 * MiB,
      TINY_CACHES ", 'discard': 'unmap'", 400, .compress = true },
    { "4k-zlib-v2", 4096, 16, 2, 3 * MiB + 512, QCOW2_BACKING, 2 * MiB,
      TINY_CACHES ", 'discard': 'unmap', 'cache': {'direct': true}", 300, .compress = true },
    { "64k-direct", 65536, 16, 3, 8 * MiB, NO_BACKING, 0,
      ", 'discard': 'unmap', 'cache': {'direct': true}", 200 },
    { "64k-over-raw-direct", 65536, 16, 3, 8 * MiB, RAW_BACKING, 5 * MiB + 512,
      ", 'discard': 'unmap', 'cache': {'direct': true}", 200 },
    { "16k-extended", 16384, 16, 3, 6 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'",
      500, .extended = true },
    { "16k-extended-over-qcow2", 16384, 8, 3, 4 * MiB + 512, QCOW2_BACKING, 5 * MiB,
      TINY_CACHES ", 'discard': 'unmap', 'pass-discard-other': true", 500, .extended = true },
    { "64k-extended-over-shorter-raw", 65536, 16, 3, 8 * MiB, RAW_BACKING, 5 * MiB + 4608,
      ", 'discard': 'unmap'", 400, .extended = true },
    { "128k-extended-no-unref", 131072, 64, 3, 8 * MiB, NO_BACKING, 0,
      ", 'discard': 'unmap', 'discard-no-unref': true", 400, .extended = true },
    { "2M-extended-over-raw", 2 * MiB, 16, 3, 9 * MiB + 4096, RAW_BACKING, 7 * MiB, "", 120,
      .extended = true },
};

/* QEMU keeps what the disk is now; from here on its clusters are shared. */
static void take_snapshot(struct model *model)
{
    must_run("qemu-img snapshot -c then model.qcow2");
    save_file("then.raw", model->shadow, model->shape->size);
}

static void judge_snapshot(void)
{
    must_run("qemu-img convert -f qcow2 -l snapshot.name=then -O raw model.qcow2 got.raw");
    must_run("cmp got.raw then.raw");
    must_run("qemu-img snapshot -d then model.qcow2");
    expect_clean("model.qcow2", false);
}

static void co_run_shape(const struct shape *shape, uint64_t seed)
{
    struct model model;
    /* Each packed cluster has a reference already: one more may not fit into two bits. */
    bool snapshot = shape->refcount_bits > (shape->compress ? 4 : 1) && !shape->data_file;

    work_in_memory(!strstr(shape->options, "direct"));
    co_model_init(&model, shape, seed);
    for (int session = 0; session < 2; session++) {
        if (session == 1 && snapshot)
            take_snapshot(&model);
        model.node = co_open_image("model.qcow2", shape->options);
        co_model_compare(&model, "after opening");
        co_model_work(&model, shape->ops);
        co_model_compare(&model, "before closing");
        co_node_unref(model.node);
        model_judge(&model);
    }
    if (snapshot)
        judge_snapshot();
    model_done(&model);
}

CO_TEST(images_of_every_shape_behave_like_arrays_of_bytes)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS"), *only = getenv("STILLPOINT_SHAPE");
    uint64_t seed = test_seed(20261124);

    for (long round = 0; round < (rounds ? atol(rounds) : 1); round++) {
        for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
            if (only && strcmp(only, shapes[i].name) != 0)
                continue;
            alarm(120);
            co_run_shape(&shapes[i], seed + (uint64_t)round);
            test_tally(1, "lives");
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(images_of_every_shape_behave_like_arrays_of_bytes),
    };

    return drivers_test_main(argc, argv, "qcow2 model", tests, ARRAY_SIZE(tests));
}
