/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: what workers do for an image, packing and unpacking of compressed clusters, shares
 * nothing with the loop or with each other that is not handed over.
 * Method: several coroutines write clusters compressed while others read them, and write
 * normally beside; each reader must see a cluster as it was or as it is. Meant for
 * ThreadSanitizer (suite `threads`), which sees the rest.
 */
#include "qcow2_test.h"
#include <string.h>
#include <unistd.h>

#define CLUSTER (16 * KiB)
#define CLUSTERS 128ULL
#define SIZE (CLUSTERS * CLUSTER)

struct scene {
    struct node *n;
    uint64_t seed, next;
    unsigned generation;         /* of what is being written */
    unsigned writers;            /* that are at it */
    bool written[CLUSTERS];      /* in this generation */
};

/* Text that becomes smaller, and says where it belongs. */
static void fill_cluster(unsigned char *p, uint64_t cluster, unsigned generation)
{
    for (size_t i = 0; i < CLUSTER; i++)
        p[i] = (unsigned char)(cluster * 7 + generation * 31 + i / 50 * (i % 3));
}

static void co_write_some(void *arg)
{
    struct scene *sc = arg;
    unsigned char *data = xmalloc(CLUSTER);

    while (sc->next < CLUSTERS) {
        uint64_t cluster = sc->next++;
        unsigned flags = test_random(&sc->seed, 5) ? REQ_COMPRESSED : 0;

        fill_cluster(data, cluster, sc->generation);
        assert_int_equal(co_node_pwrite(sc->n, cluster * CLUSTER, CLUSTER, data, flags), 0);
        sc->written[cluster] = true;
    }
    sc->writers--;
    free(data);
}

static void co_read_some(void *arg)
{
    struct scene *sc = arg;
    unsigned char *data = xmalloc(CLUSTER), *want = xmalloc(CLUSTER);

    while (sc->writers) {
        uint64_t cluster = test_random(&sc->seed, CLUSTERS);
        bool new = sc->written[cluster], same;

        assert_int_equal(co_node_pread(sc->n, cluster * CLUSTER, CLUSTER, data, 0), 0);
        fill_cluster(want, cluster, sc->generation);
        same = memcmp(data, want, CLUSTER) == 0;
        if (!new && !same) {
            fill_cluster(want, cluster, sc->generation - 1);
            same = memcmp(data, want, CLUSTER) == 0;
        }
        assert_true(same);
    }
    free(data);
    free(want);
}

static void co_generation(struct scene *sc)
{
    struct crew crew = { 0 };

    sc->generation++;
    sc->next = 0;
    sc->writers = 6;
    memset(sc->written, 0, sizeof(sc->written));
    for (int i = 0; i < 6; i++)
        crew_start(&crew, co_write_some, sc);
    for (int i = 0; i < 4 && sc->generation > 1; i++)
        crew_start(&crew, co_read_some, sc);
    co_crew_wait(&crew);
    assert_int_equal(co_node_flush(sc->n), 0);
}

CO_TEST(compressed_clusters_are_written_while_others_read)
{
    for (int type = QCOW2_COMPRESSION_ZLIB; type <= QCOW2_COMPRESSION_ZSTD; type++) {
        struct scene sc = { .seed = 11 };

        alarm(120);
        co_make_image("w.qcow2", &(struct qcow2_create_opts){
            .size = SIZE, .cluster_size = CLUSTER, .compression = (enum qcow2_compression)type });
        sc.n = co_open_image("w.qcow2", ", 'discard': 'unmap'");
        for (int i = 0; i < 4; i++)
            co_generation(&sc);
        co_node_unref(sc.n);
        expect_clean("w.qcow2", false);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compressed_clusters_are_written_while_others_read),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "workers of qcow2", tests, ARRAY_SIZE(tests));
}
