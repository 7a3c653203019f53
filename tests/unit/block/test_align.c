/* SPDX-License-Identifier: Apache-2.0
 *
 * Fitting requests to blocks. The heart is the storm: writers that own bytes of
 * the same blocks write, zero and read them at once, on a driver that dawdles at
 * random. Each byte has one owner, so in the end, and at any time for its owner,
 * it is what its owner wrote last; a read-modify-write that is not exclusive
 * loses somebody's bytes.
 */
#include "co_test.h"
#include "memdrv.h"

#define DISK (24 * KiB)

static char buf[4 * MiB];

static void unaligned_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':16384,'request-align':4096}");
    struct mem *m = mem_of(n);

    mem_fill(m, 0, 16384, MEM_IS_DATA, 'x');
    memset(buf, 'w', sizeof(buf));

    /* Inside one block: it is read once. */
    assert_int_equal(co_node_pwrite(n, 5000, 100, buf, 0), 0);
    assert_int_equal(m->n_log, 2);
    assert_int_equal(mem_nth(m, MEM_READ, 0)->off, 4096);
    assert_int_equal(mem_nth(m, MEM_WRITE, 0)->len, 4096);
    assert_int_equal(m->data[4999], 'x');
    assert_int_equal(m->data[5000], 'w');
    assert_int_equal(m->data[5099], 'w');
    assert_int_equal(m->data[5100], 'x');

    /* Over several: the blocks at the ends are read, one write. */
    mem_clear_log(m);
    assert_int_equal(co_node_pwrite(n, 4000, 8193, buf, 0), 0);
    assert_int_equal(mem_count(m, MEM_READ), 2);
    assert_int_equal(mem_nth(m, MEM_READ, 0)->off, 0);
    assert_int_equal(mem_nth(m, MEM_READ, 1)->off, 8192);
    assert_int_equal(mem_count(m, MEM_WRITE), 1);
    assert_int_equal(m->data[3999], 'x');
    assert_int_equal(m->data[12192], 'w');
    assert_int_equal(m->data[12193], 'x');

    /* A failing read of an end fails the write and changes nothing. */
    m->fails[MEM_READ] = -EIO;
    mem_clear_log(m);
    assert_int_equal(co_node_pwrite(n, 1, 1, buf, 0), -EIO);
    assert_int_equal(mem_count(m, MEM_WRITE), 0);
    m->fails[MEM_READ] = 0;

    memset(buf, 0, 16384);
    assert_int_equal(co_node_pread(n, 4990, 200, buf, 0), 0);
    assert_memory_equal(buf, m->data + 4990, 200);
    co_node_unref(n);
}

static void ragged_writes_keep_what_is_around_them(void **state)
{
    in_loop(unaligned_body);
}

/* More than a bounce buffer holds, and more than the driver takes at a time. */
static void long_ragged_body(void)
{
    for (int limited = 0; limited < 2; limited++) {
        struct node *n = co_test_open("{'driver':'test-mem','size':4194304,'request-align':512,"
                                      "'max-transfer':%d}", limited ? 65536 : 0);
        struct mem *m = mem_of(n);
        uint64_t len = 3 * MiB + 77, off = 1001;

        for (size_t i = 0; i < len; i++)
            buf[i] = (char)(i * 7 + i / 1000);
        mem_fill(m, 0, n->size, MEM_IS_DATA, 'x');
        assert_int_equal(co_node_pwrite(n, off, len, buf, 0), 0);
        assert_int_equal(m->data[off - 1], 'x');
        assert_memory_equal(m->data + off, buf, len);
        assert_int_equal(m->data[off + len], 'x');
        /* Straight from the caller's memory but for the ends. */
        if (!limited)
            assert_true(mem_count(m, MEM_WRITE) <= 3);
        memset(buf, 0, len);
        assert_int_equal(co_node_pread(n, off, len, buf, 0), 0);
        assert_memory_equal(m->data + off, buf, len);
        co_node_unref(n);
    }
}

static void long_ragged_requests_work(void **state)
{
    in_loop(long_ragged_body);
}

/* A size that is no multiple of the unit: an image file opened with O_DIRECT. */
static void odd_size_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':10000,'request-align':4096,"
                                  "'discard':'unmap'}");
    struct mem *m = mem_of(n);

    memset(buf, 'w', 10000);
    assert_int_equal(co_node_pwrite(n, 0, 10000, buf, 0), 0);
    assert_memory_equal(m->data, buf, 10000);
    assert_int_equal(mem_count(m, MEM_READ), 0);
    memset(buf, 0, 10000);
    assert_int_equal(co_node_pread(n, 0, 10000, buf, 0), 0);
    assert_memory_equal(m->data, buf, 10000);
    assert_int_equal(co_node_pread(n, 9999, 1, buf, 0), 0);
    assert_int_equal(buf[0], 'w');
    assert_int_equal(co_node_pread(n, 9999, 2, buf, 0), -EINVAL);

    assert_int_equal(co_node_write_zeroes(n, 9000, 1000, 0), 0);
    assert_int_equal(m->data[8999], 'w');
    assert_int_equal(m->data[9000], 0);
    assert_int_equal(co_node_discard(n, 4096, 10000 - 4096), 0);
    assert_int_equal(mem_nth(m, MEM_DISCARD, 0)->len, 8192);

    struct block_status st;

    assert_int_equal(co_node_status(n, 9990, 10, &st), 0);
    assert_int_equal(st.len, 10);
    assert_int_equal(st.flags, STATUS_ZERO | STATUS_ALLOCATED);
    co_node_unref(n);
}

static void a_size_between_blocks_is_kept(void **state)
{
    in_loop(odd_size_body);
}

/* ---- the storm ---------------------------------------------------------------- */

struct storm {
    struct node *n;
    uint64_t seed;
    unsigned char shadow[DISK];
};

struct writer {
    struct storm *storm;
    uint64_t start, end;         /* the bytes that it owns */
    unsigned requests;
};

static void co_check_own(struct writer *w, uint64_t off, uint64_t len)
{
    unsigned char *got = malloc(len);

    assert_int_equal(co_node_pread(w->storm->n, off, len, got, 0), 0);
    assert_memory_equal(got, w->storm->shadow + off, len);
    free(got);
}

static void co_writer(void *arg)
{
    struct writer *w = arg;
    struct storm *s = w->storm;

    for (unsigned i = 0; i < w->requests; i++) {
        uint64_t off = w->start + test_random(&s->seed, w->end - w->start);
        uint64_t len = 1 + test_random(&s->seed, w->end - off);
        unsigned char *own = s->shadow + off, *data = malloc(len);

        /* Sometimes whole blocks, which are not read first. */
        if (test_random(&s->seed, 4) == 0 && align_up(off, 512) + 512 <= w->end) {
            off = align_up(off, 512);
            own = s->shadow + off;
            len = align_down(MIN(w->end - off, len + 511), 512);
            data = realloc(data, len);
        }
        switch (test_random(&s->seed, 4)) {
        case 0:
            memset(own, 0, len);
            assert_int_equal(co_node_write_zeroes(s->n, off, len, 0), 0);
            break;
        case 1:
            co_check_own(w, off, len);
            break;
        default:
            memset(data, (int)(1 + test_random(&s->seed, 255)), len);
            memcpy(own, data, len);
            assert_int_equal(co_node_pwrite(s->n, off, len, data, 0), 0);
        }
        free(data);
    }
}

static uint64_t storm_seed;

static void co_storm(unsigned align, unsigned max_transfer, unsigned writers)
{
    static struct storm s;
    struct crew crew = { 0 };
    CLEANUP(free) struct writer *w = calloc(writers, sizeof(*w));

    s = (struct storm){ .seed = storm_seed++ };
    s.n = co_test_open("{'driver':'test-mem','size':%d,'request-align':%u,'max-transfer':%u}",
                       (int)DISK - 100, align, max_transfer);
    mem_of(s.n)->dawdle = 5;
    for (unsigned i = 0; i < writers; i++) {
        uint64_t size = (DISK - 100) / writers;

        w[i] = (struct writer){ &s, i * size, (i + 1) * size, 60 };
        crew_start(&crew, co_writer, &w[i]);
    }
    co_crew_wait(&crew);
    assert_memory_equal(mem_of(s.n)->data, s.shadow, node_size(s.n));
    assert_true(mem_of(s.n)->most_in_flight > 1);
    co_node_unref(s.n);
}

static void storm_body(void)
{
    static const unsigned shapes[][3] = {
        { 512, 0, 7 }, { 512, 1024, 50 }, { 4096, 0, 3 }, { 4096, 4096, 41 }, { 1, 100, 9 },
    };

    storm_seed = test_seed(4711);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
            co_storm(shapes[i][0], shapes[i][1], shapes[i][2]);
    }
}

static void writers_of_shared_blocks_lose_nothing(void **state)
{
    in_loop(storm_body);
}

/* Only what overlaps waits. */
static void co_write_512(void *arg)
{
    struct node *n = arg;

    assert_int_equal(co_node_pwrite(n, 512, 512, buf, 0), 0);
}

static void co_write_ragged(void *arg)
{
    struct node *n = arg;

    assert_int_equal(co_node_pwrite(n, 600, 10, buf, 0), 0);
}

static void co_write_elsewhere(void *arg)
{
    struct node *n = arg;

    assert_int_equal(co_node_pwrite(n, 2048, 512, buf, 0), 0);
}

static void independence_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':4096,'request-align':512}");
    struct mem *m = mem_of(n);
    struct crew crew = { 0 };

    m->held[MEM_WRITE] = true;
    crew_start(&crew, co_write_512, n);
    crew_start(&crew, co_write_512, n);       /* no order among whole blocks */
    crew_start(&crew, co_write_ragged, n);    /* waits for both */
    crew_start(&crew, co_write_512, n);       /* waits for it */
    crew_start(&crew, co_write_elsewhere, n);
    co_yield_times(3);
    assert_int_equal(m->in_flight, 3);
    assert_int_equal(mem_count(m, MEM_READ), 0);
    assert_int_equal(mem_nth(m, MEM_WRITE, 2)->off, 2048);
    mem_release(m, MEM_WRITE);
    co_crew_wait(&crew);
    assert_int_equal(mem_count(m, MEM_WRITE), 5);
    co_node_unref(n);
}

static void only_overlapping_writes_wait(void **state)
{
    in_loop(independence_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ragged_writes_keep_what_is_around_them),
        cmocka_unit_test(long_ragged_requests_work),
        cmocka_unit_test(a_size_between_blocks_is_kept),
        cmocka_unit_test(writers_of_shared_blocks_lose_nothing),
        cmocka_unit_test(only_overlapping_writes_wait),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
