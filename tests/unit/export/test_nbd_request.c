/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: whatever a client asks for, only what lies inside the export, is allowed
 * and means something gets past the funnel, and the rest has the error that the
 * protocol wants.
 * Method: one case a line; then a sweep of random requests against the promise.
 */
#include "export/nbd/request.h"
#include "base/limits.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define SIZE (1 * GiB)

static const struct nbd_session writable = {
    .size = SIZE, .writable = true, .structured = true, .contexts = 1,
};
static const struct nbd_session read_only = {
    .size = SIZE, .structured = true, .contexts = 1,
};
static const struct nbd_session discard_only = {
    .size = SIZE, .writable = true, .discard_only = true, .structured = true, .contexts = 1,
};
static const struct nbd_session simple = { .size = SIZE, .writable = true };

struct request_case {
    const struct nbd_session *session;
    uint16_t type, flags;
    uint64_t offset;
    uint32_t length;
    int want;
};

static void check_cases(const struct request_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct request_case *c = &cases[i];
        struct nbd_request rq = {
            .type = c->type, .flags = c->flags, .offset = c->offset, .length = c->length,
        };
        const char *why = NULL;
        int r = nbd_check_request(&rq, c->session, &why);

        if (r != c->want)
            print_error("case %zu: got %d, want %d\n", i, r, c->want);
        assert_int_equal(r, c->want);
        assert_int_equal(!!why, r < 0);
    }
}
#define CHECK(cases) check_cases(cases, ARRAY_SIZE(cases))

static void ranges_are_kept_inside_the_export(void **state)
{
    static const struct request_case cases[] = {
        { &writable, NBD_CMD_READ, 0, 0, 4096, 0 },
        { &writable, NBD_CMD_READ, 0, SIZE - 1, 1, 0 },
        { &writable, NBD_CMD_READ, 0, SIZE, 0, 0 },
        { &writable, NBD_CMD_READ, 0, SIZE, 1, -EINVAL },
        { &writable, NBD_CMD_READ, 0, SIZE + 1, 0, -EINVAL },
        { &writable, NBD_CMD_READ, 0, UINT64_MAX, 2, -EINVAL },
        { &writable, NBD_CMD_WRITE, 0, SIZE - 1, 2, -ENOSPC },
        { &writable, NBD_CMD_WRITE, 0, UINT64_MAX, 1, -ENOSPC },
        { &writable, NBD_CMD_WRITE_ZEROES, 0, SIZE - 512, 513, -ENOSPC },
        { &writable, NBD_CMD_WRITE_ZEROES, 0, 0, SIZE, 0 },
        { &writable, NBD_CMD_TRIM, 0, 1, SIZE, -EINVAL },
        { &writable, NBD_CMD_TRIM, 0, 0, SIZE, 0 },
        { &writable, NBD_CMD_CACHE, 0, SIZE, 1, -EINVAL },
        { &writable, NBD_CMD_BLOCK_STATUS, 0, 1, SIZE, -EINVAL },
        { &writable, NBD_CMD_BLOCK_STATUS, 0, 0, SIZE, 0 },
        { &writable, NBD_CMD_FLUSH, 0, 0, 0, 0 },
        { &writable, NBD_CMD_FLUSH, 0, 0, 512, -EINVAL },
        { &writable, NBD_CMD_FLUSH, 0, 512, 0, -EINVAL },
    };

    CHECK(cases);
}

static void data_is_bounded(void **state)
{
    static const struct request_case cases[] = {
        { &writable, NBD_CMD_READ, 0, 0, LIMIT_NBD_REQUEST_BYTES, 0 },
        { &writable, NBD_CMD_READ, 0, 0, LIMIT_NBD_REQUEST_BYTES + 1, -EINVAL },
        { &writable, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, LIMIT_NBD_REQUEST_BYTES + 1, -EOVERFLOW },
        { &writable, NBD_CMD_WRITE, 0, 0, LIMIT_NBD_REQUEST_BYTES, 0 },
        { &writable, NBD_CMD_WRITE, 0, 0, LIMIT_NBD_REQUEST_BYTES + 1, -EINVAL },
        { &writable, NBD_CMD_WRITE, 0, 0, UINT32_MAX, -EINVAL },
        { &writable, NBD_CMD_CACHE, 0, 0, LIMIT_NBD_REQUEST_BYTES + 1, -EINVAL },
    };

    CHECK(cases);
}

static void a_read_only_export_refuses_what_writes(void **state)
{
    static const struct request_case cases[] = {
        { &read_only, NBD_CMD_WRITE, 0, 0, 512, -EPERM },
        { &read_only, NBD_CMD_WRITE, 0, SIZE, 512, -EPERM },
        { &read_only, NBD_CMD_TRIM, 0, 0, 512, -EPERM },
        { &read_only, NBD_CMD_WRITE_ZEROES, 0, 0, 512, -EPERM },
        { &read_only, NBD_CMD_READ, 0, 0, 512, 0 },
        { &read_only, NBD_CMD_FLUSH, 0, 0, 0, 0 },
        { &read_only, NBD_CMD_CACHE, 0, 0, 512, 0 },
        { &read_only, NBD_CMD_BLOCK_STATUS, 0, 0, 512, 0 },
        /* A moment that is past: to be given up, not to be written. */
        { &discard_only, NBD_CMD_WRITE, 0, 0, 512, -EPERM },
        { &discard_only, NBD_CMD_WRITE_ZEROES, 0, 0, 512, -EPERM },
        { &discard_only, NBD_CMD_TRIM, 0, 0, 512, 0 },
        { &discard_only, NBD_CMD_TRIM, 0, SIZE, 512, -EINVAL },
        { &discard_only, NBD_CMD_READ, 0, 0, 512, 0 },
    };

    CHECK(cases);
}

static void flags_belong_to_their_commands(void **state)
{
    static const struct request_case cases[] = {
        { &writable, NBD_CMD_READ, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF, 0, 512, 0 },
        { &writable, NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 512, -EINVAL },
        { &simple, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512, -EINVAL },
        { &writable, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, 512, 0 },
        { &writable, NBD_CMD_WRITE, NBD_CMD_FLAG_DF, 0, 512, -EINVAL },
        { &writable, NBD_CMD_WRITE, 1 << 15, 0, 512, -EINVAL },
        { &writable, NBD_CMD_WRITE_ZEROES,
          NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, 0, 512, 0 },
        { &writable, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_REQ_ONE, 0, 512, -EINVAL },
        { &writable, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 0, 512, 0 },
        { &writable, NBD_CMD_TRIM, NBD_CMD_FLAG_FAST_ZERO, 0, 512, -EINVAL },
        { &writable, NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, 0, 0, 0 },
        { &writable, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 512, 0 },
    };

    CHECK(cases);
}

static void block_status_needs_a_context_and_a_length(void **state)
{
    static const struct request_case cases[] = {
        { &simple, NBD_CMD_BLOCK_STATUS, 0, 0, 512, -EINVAL },
        { &writable, NBD_CMD_BLOCK_STATUS, 0, 0, 0, -EINVAL },
    };

    CHECK(cases);
}

static void unknown_commands_are_refused(void **state)
{
    static const struct request_case cases[] = {
        { &writable, NBD_CMD_DISC, 0, 0, 0, -EINVAL },
        { &writable, 8, 0, 0, 0, -EINVAL },
        { &writable, UINT16_MAX, 0, 0, 0, -EINVAL },
    };

    CHECK(cases);
}

static void what_passes_keeps_the_promise(void **state)
{
    uint64_t random = 1;
    unsigned passed = 0;

    for (int i = 0; i < 200000; i++) {
        random = random * 6364136223846793005ULL + 1442695040888963407ULL;
        struct nbd_request rq = {
            .type = (random >> 60) % 9,
            .flags = (random >> 50) & 0x1f & (random >> 40),
            .offset = random >> 20 & 1 ? random >> 33 : UINT64_MAX - (random >> 60),
            .length = random >> 21 & 1 ? random >> 40 : random >> 32,
        };
        const char *why;

        if (nbd_check_request(&rq, &writable, &why) < 0)
            continue;
        passed++;
        assert_true(rq.offset <= SIZE && rq.length <= SIZE - rq.offset);
        assert_true(nbd_request_buffer(&rq, &writable) <= LIMIT_NBD_REQUEST_BYTES);
    }
    assert_true(passed > 1000);
}

static void memory_is_what_the_answer_needs(void **state)
{
    struct nbd_request rq = { .type = NBD_CMD_BLOCK_STATUS, .length = UINT32_MAX };

    assert_int_equal(nbd_request_buffer(&rq, &writable),
                     NBD_STATUS_CHUNK_BYTES + LIMIT_NBD_EXTENTS * NBD_EXTENT_BYTES);
    rq.flags = NBD_CMD_FLAG_REQ_ONE;
    assert_int_equal(nbd_request_buffer(&rq, &writable),
                     NBD_STATUS_CHUNK_BYTES + NBD_EXTENT_BYTES);
    /* A chunk for each context. */
    assert_int_equal(nbd_request_buffer(&rq, &(struct nbd_session){ .contexts = UINT64_MAX }),
                     LIMIT_NBD_CONTEXTS * (NBD_STATUS_CHUNK_BYTES + NBD_EXTENT_BYTES));
    rq = (struct nbd_request){ .type = NBD_CMD_CACHE, .length = LIMIT_NBD_REQUEST_BYTES };
    assert_int_equal(nbd_request_buffer(&rq, &writable), LIMIT_NBD_CACHE_STEP_BYTES);
    rq = (struct nbd_request){ .type = NBD_CMD_WRITE_ZEROES, .length = UINT32_MAX };
    assert_int_equal(nbd_request_buffer(&rq, &writable), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_kept_inside_the_export),
        cmocka_unit_test(data_is_bounded),
        cmocka_unit_test(a_read_only_export_refuses_what_writes),
        cmocka_unit_test(flags_belong_to_their_commands),
        cmocka_unit_test(block_status_needs_a_context_and_a_length),
        cmocka_unit_test(unknown_commands_are_refused),
        cmocka_unit_test(what_passes_keeps_the_promise),
        cmocka_unit_test(memory_is_what_the_answer_needs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
