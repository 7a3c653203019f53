/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: no image, whatever is in it, makes the driver crash, hang or assert.
 * Method: sound images of several kinds with a few random changes to header, tables
 * and refcounts, opened and used by several coroutines at once; everything may
 * fail. Sanitizers watch. Repeat with STILLPOINT_SEED, longer with
 * STILLPOINT_ROUNDS.
 */
#include "base/bytes.h"
#include "model.h"
#include <unistd.h>

static const struct shape shape = {
    "mutated", 4096, 16, 3, 2 * MiB, RAW_BACKING, 1 * MiB,
    TINY_CACHES ", 'discard': 'unmap', 'pass-discard-other': true", 60,
};

/* Commands that make i.qcow2 of base.raw and more.raw. */
static const char *const kinds[] = {
    "qemu-img create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw i.qcow2 2M && "
        "qemu-io -f qcow2 -c 'write -P 3 0 600k' -c 'write -z 700k 100k' i.qcow2",
    "qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k more.raw i.qcow2",
    "qemu-img convert -c -f raw -O qcow2 -o cluster_size=64k,compression_type=zstd more.raw "
    "i.qcow2",
    "qemu-img convert -f raw -O qcow2 -o cluster_size=512,refcount_bits=1 more.raw i.qcow2",
    "qemu-img convert -f raw -O qcow2 -o cluster_size=1k,refcount_bits=64 more.raw i.qcow2 && "
        "qemu-img snapshot -c s i.qcow2",
    "qemu-img convert -f raw -O qcow2 -o compat=0.10,cluster_size=2k more.raw i.qcow2",
    "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k -b base.raw -F raw i.qcow2 2M "
        "&& qemu-io -f qcow2 -c 'write -P 3 1k 300k' -c 'write -z 400k 3k' -c 'write 700k 5k' "
        "i.qcow2",
};

static uint64_t get64(uint64_t at)
{
    uint8_t buf[8];

    file_read(work_path("m.qcow2"), at, buf, sizeof(buf));
    return load_be64(buf);
}

/* A place that matters: in the header, a table, or what the first entry of a table
 * points to. */
static uint64_t pick_place(uint64_t *seed, uint64_t size)
{
    uint64_t l1 = get64(40), reftable = get64(48), table;

    switch (test_random(seed, 6)) {
    case 0:
        return test_random(seed, 112);
    case 1:
        return l1 + test_random(seed, 64);
    case 2:
        return reftable + test_random(seed, 64);
    case 3:
        table = l1 + 8 <= size ? get64(l1) & 0x00fffffffffffe00ULL : 0;
        return table + test_random(seed, 4096);
    case 4:
        table = reftable + 8 <= size ? get64(reftable) : 0;
        return table + test_random(seed, 4096);
    default:
        return test_random(seed, size);
    }
}

static uint64_t pick_value(uint64_t *seed, uint64_t old, uint64_t size)
{
    switch (test_random(seed, 8)) {
    case 0:
        return 0;
    case 1:
        return UINT64_MAX;
    case 2:
        return old ^ 1ULL << test_random(seed, 64);
    case 3:
        return 1ULL << 63 | align_down(test_random(seed, size), 512);
    case 4:
        return 1ULL << 62 | test_random(seed, size) | test_random(seed, 256) << 54;
    case 5:
        return align_down(test_random(seed, size), 4096);
    case 6:
        return old + 4096;
    default:
        return test_random(seed, UINT64_MAX);
    }
}

static void mutate(uint64_t *seed, uint64_t size)
{
    for (uint64_t n = 1 + test_random(seed, 4); n; n--) {
        uint64_t at = pick_place(seed, size);
        uint8_t buf[8];

        if (test_random(seed, 2))
            at = align_down(at, 8);
        if (at + 8 > size)
            continue;
        store_be64(buf, pick_value(seed, get64(at), size));
        file_write(work_path("m.qcow2"), at, buf, 1 + test_random(seed, 8));
    }
}

/* Whether it could be opened. */
static bool co_use(struct model *m, uint64_t seed)
{
    struct err err = ERR_INIT;
    json_t *json = test_json("{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': '%s'}%s}",
                             work_path("m.qcow2"), shape.options);

    m->seed = seed;
    m->node = co_node_open(json, false, &err);
    json_decref(json);
    if (!m->node)
        return false;
    /* The shadow has to be as long as whatever size the image says it has. */
    if (m->node->size && m->node->size <= shape.size)
        co_model_work(m, shape.ops);
    co_node_unref(m->node);
    return true;
}

CO_TEST(no_image_does_harm)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    uint64_t seed = test_seed(20261127);
    unsigned tried = 0, opened = 0;
    struct model m;

    co_model_init(&m, &shape, seed);
    m.may_fail = true;
    must_run("truncate -s 2M more.raw && qemu-io -f raw -c 'write -P 5 100k 700k' more.raw");
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        must_run("%s", kinds[i]);
        uint64_t size = work_size("i.qcow2");

        for (long round = rounds ? atol(rounds) : 40; round; round--) {
            alarm(60);
            must_run("cp i.qcow2 m.qcow2");
            mutate(&seed, size);
            opened += co_use(&m, test_random(&seed, UINT64_MAX));
            tried++;
            if (tried % 100 == 0)
                test_tally(100, "spoilt images");
        }
    }
    test_tally(tried % 100, "spoilt images");
    assert_true(opened * 3 > tried);       /* else most of this tested nothing */
    model_done(&m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_image_does_harm),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "mutated qcow2", tests, ARRAY_SIZE(tests));
}
