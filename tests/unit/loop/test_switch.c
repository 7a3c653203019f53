/* SPDX-License-Identifier: Apache-2.0
 *
 * The stack switch alone, without loops: built once with this machine's own and
 * once with the C library's (ucontext). What a call must keep is kept.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base.h"
#include "loop/co_switch.h"

#define STACK 65536

static struct co_ctx main_ctx, other_ctx;
static _Alignas(64) char stack[STACK];
static int got;

static void count_up(void *arg)
{
    assert_ptr_equal(arg, &got);
    /* The ABI's alignment on arrival: the compiler relies on it. */
    assert_int_equal((uintptr_t)__builtin_frame_address(0) % 16, 0);
    for (;;) {
        got++;
        co_ctx_switch(&other_ctx, &main_ctx);
    }
}

static void each_side_goes_on_where_it_was(void **state)
{
    got = 0;
    /* A top that is not aligned is aligned for us. */
    co_ctx_init(&other_ctx, stack, stack + STACK - 3, count_up, &got);
    for (int i = 1; i <= 1000; i++) {
        co_ctx_switch(&main_ctx, &other_ctx);
        assert_int_equal(got, i);
    }
}

/* More live values than there are registers to keep them in. */
static uint64_t mix(uint64_t seed)
{
    uint64_t a = seed, b = a * 3 + 1, c = b * 5 + 2, d = c * 7 + 3, e = d * 11 + 4,
             f = e * 13 + 5, g = f * 17 + 6, h = g * 19 + 7;
    double x = (double)seed, y = x * 1.5, z = y * 2.5;

    for (int i = 0; i < 100; i++) {
        if (seed % 2)
            co_ctx_switch(&other_ctx, &main_ctx);
        else
            co_ctx_switch(&main_ctx, &other_ctx);
        a += h;
        b ^= a;
        c += b;
        d ^= c;
        e += d;
        f ^= e;
        g += f;
        h ^= g;
        x += 1;
        y += x;
        z -= y;
    }
    return a + b + c + d + e + f + g + h + (uint64_t)(int64_t)(x + y + z);
}

static uint64_t results[2];

static void mix_there(void *arg)
{
    for (;;) {
        results[1] = mix(7);
        co_ctx_switch(&other_ctx, &main_ctx);
    }
}

static void registers_survive(void **state)
{
    uint64_t first[2];

    /* Interleaved one way, and then with another partner: the sums may not depend
     * on what the other side does in between. */
    co_ctx_init(&other_ctx, stack, stack + STACK, mix_there, NULL);
    results[0] = mix(2);
    co_ctx_switch(&main_ctx, &other_ctx);
    first[0] = results[0];
    first[1] = results[1];
    assert_true(first[0] != 0 && first[1] != 0);

    co_ctx_init(&other_ctx, stack, stack + STACK, count_up, &got);
    assert_int_equal(mix(2), first[0]);
    co_ctx_init(&other_ctx, stack, stack + STACK, mix_there, NULL);
    results[1] = 0;
    while (results[1] == 0)
        co_ctx_switch(&main_ctx, &other_ctx);
    assert_int_equal(results[1], first[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_side_goes_on_where_it_was),
        cmocka_unit_test(registers_survive),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
