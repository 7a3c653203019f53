/* SPDX-License-Identifier: Apache-2.0
 *
 * The few language helpers every file uses: assertions that are always on,
 * cleanup attributes, small arithmetic. Included first by every header.
 */
#ifndef BASE_BASE_H
#define BASE_BASE_H

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#ifdef NDEBUG
#error "Stillpoint's assertions guard users' data: do not build with NDEBUG"
#endif

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define UNUSED __attribute__((unused))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
/* Each argument is evaluated once; the counter lets them nest. */
#define PASTE(a, b) PASTE_(a, b)
#define PASTE_(a, b) a##b
#define MIN(a, b) MIN_(a, b, PASTE(_a, __COUNTER__), PASTE(_b, __COUNTER__))
#define MAX(a, b) MAX_(a, b, PASTE(_a, __COUNTER__), PASTE(_b, __COUNTER__))
#define MIN_(a, b, x, y) ({ __typeof__(a) x = (a); __typeof__(b) y = (b); x < y ? x : y; })
#define MAX_(a, b, x, y) ({ __typeof__(a) x = (a); __typeof__(b) y = (b); x > y ? x : y; })

#define container_of(ptr, type, member) \
    ((type *)((char *)(ptr) - offsetof(type, member)))

#define KiB (1024ULL)
#define MiB (1024ULL * KiB)
#define GiB (1024ULL * MiB)
#define TiB (1024ULL * GiB)

#define NSEC_PER_USEC (1000ULL)
#define NSEC_PER_MSEC (1000000ULL)
#define NSEC_PER_SEC (1000000000ULL)

/* @align is a power of two in all of these. */
static inline uint64_t align_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

static inline bool is_aligned(uint64_t v, uint64_t align)
{
    return (v & (align - 1)) == 0;
}

static inline bool is_power_of_2(uint64_t v)
{
    return v && !(v & (v - 1));
}

static inline uint64_t div_round_up(uint64_t v, uint64_t by)
{
    return v / by + (v % by != 0);
}

/* CLEANUP(foo_free) struct foo *f = ...; calls foo_free(f) at the end of the
 * scope unless f is NULL by then. DEFINE_CLEANUP makes a destructor usable so;
 * MOVE gives a pointer away and leaves NULL behind. */
#define DEFINE_CLEANUP(type, fn) \
    static inline void cleanup_##fn(type *p) \
    { \
        if (*p) \
            fn(*p); \
    } \
    struct cleanup_needs_a_semicolon
/* Unused: what is only held until the end of the scope is of use there. */
#define CLEANUP(fn) __attribute__((cleanup(cleanup_##fn), unused))
#define MOVE(p) ({ __typeof__(p) _moved = (p); (p) = NULL; _moved; })

/* In a loop that waits for another CPU: leave the core's resources to others. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}

/* For a descriptor: closed at the end of the scope unless it is negative. */
void cleanup_close(int *fd);

#endif
