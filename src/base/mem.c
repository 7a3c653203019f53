/* SPDX-License-Identifier: Apache-2.0
 *
 * Allocation, and the zero test that every copy runs over its data.
 */
#include "base/mem.h"
#include <stdio.h>

static void *or_die(void *p)
{
    if (UNLIKELY(!p)) {
        fputs("stillpoint: out of memory\n", stderr);
        abort();
    }
    return p;
}

void *xmalloc(size_t size)
{
    return or_die(malloc(size ? size : 1));
}

void *xzalloc(size_t size)
{
    return or_die(calloc(1, size ? size : 1));
}

void *xcalloc(size_t n, size_t size)
{
    return or_die(calloc(n ? n : 1, size ? size : 1));
}

void *xrealloc(void *p, size_t size)
{
    return or_die(realloc(p, size ? size : 1));
}

char *xstrdup(const char *s)
{
    return or_die(strdup(s));
}

char *xstrndup(const char *s, size_t n)
{
    return or_die(strndup(s, n));
}

void *xmemdup(const void *p, size_t size)
{
    return memcpy(xmalloc(size), p, size);
}

char *xvasprintf(const char *fmt, va_list ap)
{
    char *s = NULL;

    if (vasprintf(&s, fmt, ap) < 0)
        s = NULL;
    return or_die(s);
}

char *xasprintf(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    char *s = xvasprintf(fmt, ap);
    va_end(ap);
    return s;
}

void *try_alloc_aligned(size_t size)
{
    void *p;

    if (posix_memalign(&p, 4096, size ? size : 1) != 0)
        return NULL;
    return p;
}

/* OR-ing 128 bytes at a time keeps the loop free of branches that depend on
 * data, so the compiler turns it into vector code. */
bool mem_is_zero(const void *p, size_t len)
{
    const unsigned char *b = p;

    while (len >= 128) {
        uint64_t w[16], any = 0;

        memcpy(w, b, sizeof(w));
        for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
            any |= w[i];
        if (any)
            return false;
        b += sizeof(w);
        len -= sizeof(w);
    }
    for (size_t i = 0; i < len; i++) {
        if (b[i])
            return false;
    }
    return true;
}
