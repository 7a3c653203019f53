/* SPDX-License-Identifier: Apache-2.0
 *
 * Help for the tests of the drivers. Each program runs with one engine, named as
 * its argument (none: the default); a test body is a coroutine on a fresh loop.
 */
#ifndef TESTS_DRIVERS_TEST_H
#define TESTS_DRIVERS_TEST_H

#include "co_test.h"

#include "base/iov.h"
#include "base/mem.h"
#include "drivers/drivers.h"
#include "loop/co_io.h"

#include <inttypes.h>
#include <stdio.h>

/* Start fn(arg) @n times at once and wait until all have returned. Coroutine. */
void co_together(unsigned n, void (*fn)(void *arg), void *arg);

/* A directory on a disk and one in memory (/dev/shm); gone with the program. */
const char *test_dir(void);
const char *test_memory_dir(void);
/* A path in test_dir(). Forgotten with the program, like all texts from here. */
const char *test_path(const char *name);
const char *test_text(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* A file of @size bytes, all hole. */
void make_file(const char *path, uint64_t size);
/* Bytes past the page cache of nodes: by other system calls than theirs. */
void file_read(const char *path, uint64_t off, void *buf, size_t len);
void file_write(const char *path, uint64_t off, const void *buf, size_t len);

/* Options (as for co_test_open) that must be refused with a text that has @words. */
void co_open_refused(const char *words, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Requests that must succeed. */
void co_fill(struct node *n, uint64_t off, uint64_t len, unsigned char byte);
void co_expect(struct node *n, uint64_t off, uint64_t len, unsigned char byte);
struct block_status co_status(struct node *n, uint64_t off, uint64_t len);

int drivers_test_main(int argc, char **argv, const char *group, const struct CMUnitTest *tests,
                      size_t n);
#define DRIVERS_TEST_MAIN(tests) \
    int main(int argc, char **argv) \
    { \
        return drivers_test_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests)); \
    }

/* A test whose body runs as a coroutine. */
#define CO_TEST(name) \
    static void name##_body(void); \
    static void name(void **state) \
    { \
        in_loop(name##_body); \
    } \
    static void name##_body(void)

#endif
