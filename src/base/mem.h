/* SPDX-License-Identifier: Apache-2.0
 *
 * Two kinds of allocation. x*() are for small control structures and abort when
 * memory is out. try_*() are for buffers whose size comes from outside: the
 * caller bounds the size first, and handles NULL as -ENOMEM. Any thread.
 */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include "base/base.h"
#include <stdarg.h>

void *xmalloc(size_t size);
void *xzalloc(size_t size);
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t size);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);
void *xmemdup(const void *p, size_t size);
char *xasprintf(const char *fmt, ...) PRINTF_LIKE(1, 2);
char *xvasprintf(const char *fmt, va_list ap) PRINTF_LIKE(1, 0);

#define xnew(type) ((type *)xzalloc(sizeof(type)))

/* A buffer fit for O_DIRECT: aligned to 4096 bytes, contents undefined. Freed
 * with free(). NULL when memory is out. */
void *try_alloc_aligned(size_t size);

/* Whether @len bytes at @p are all zero. Reads word-wise with the widest
 * vector unit that the machine has. @p may have any alignment. */
bool mem_is_zero(const void *p, size_t len);

#endif
