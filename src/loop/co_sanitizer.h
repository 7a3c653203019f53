/* SPDX-License-Identifier: Apache-2.0
 *
 * Telling AddressSanitizer and ThreadSanitizer that the stack changes; nothing
 * at all in other builds. Used by co.c only.
 *
 * A switch is three calls: san_leave on the old stack, co_ctx_switch, and
 * san_arrive on the new one. A stack that is left for good is left with
 * san_leave_forever, which frees what ASan keeps for it.
 */
#ifndef LOOP_CO_SANITIZER_H
#define LOOP_CO_SANITIZER_H

#include "base/base.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define CO_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(CO_ASAN)
#define CO_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__) && !defined(CO_TSAN)
#define CO_TSAN 1
#endif

#ifdef CO_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* What the sanitizers know of one stack. */
struct san_stack {
#ifdef CO_ASAN
    void *fake;          /* of detect_stack_use_after_return */
    const void *base;
    size_t size;
#endif
#ifdef CO_TSAN
    void *fiber;
#endif
    char unused[1];      /* so that the struct is never empty */
};

/* These are in line at any level of optimisation: ThreadSanitizer notes the entry
 * to and the exit from each function on the stack that it believes to be the
 * present one, and both must be the same. */
#define SAN_INLINE static inline __attribute__((always_inline))

/* For a function that never returns: what TSan noted at its entry would stay on a
 * stack that is used again and again. */
#if !defined(CO_TSAN)
#define SAN_NO_RETURN
#elif defined(__clang__)
#define SAN_NO_RETURN __attribute__((disable_sanitizer_instrumentation))
#else
#define SAN_NO_RETURN __attribute__((no_sanitize("thread")))
#endif

/* For a stack made by us. */
SAN_INLINE void san_stack_init(struct san_stack *s, void *base, size_t size)
{
#ifdef CO_ASAN
    s->fake = NULL;
    s->base = base;
    s->size = size;
#endif
#ifdef CO_TSAN
    s->fiber = __tsan_create_fiber(0);
#endif
}

/* Before the memory of a stack is unmapped. Frames that never returned may have
 * left it poisoned for whoever is mapped there next. */
SAN_INLINE void san_stack_done(struct san_stack *s, void *base, size_t size)
{
#ifdef CO_ASAN
    __asan_unpoison_memory_region(base, size);
#endif
#ifdef CO_TSAN
    __tsan_destroy_fiber(s->fiber);
#endif
}

/* For the thread's own stack, each time it is about to leave it. Its bounds
 * become known on arrival in the first coroutine. */
SAN_INLINE void san_thread_stack(struct san_stack *s)
{
#ifdef CO_TSAN
    s->fiber = __tsan_get_current_fiber();
#endif
}

SAN_INLINE void san_leave(struct san_stack *from, struct san_stack *to)
{
#ifdef CO_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->base, to->size);
#endif
#ifdef CO_TSAN
    __tsan_switch_to_fiber(to->fiber, 0);
#endif
}

SAN_INLINE void san_leave_forever(struct san_stack *from, struct san_stack *to)
{
#ifdef CO_ASAN
    from->fake = NULL;
    __sanitizer_start_switch_fiber(NULL, to->base, to->size);
#endif
#ifdef CO_TSAN
    __tsan_switch_to_fiber(to->fiber, 0);
#endif
}

SAN_INLINE void san_arrive(struct san_stack *here, struct san_stack *from)
{
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(here->fake, &from->base, &from->size);
#endif
}

#endif
