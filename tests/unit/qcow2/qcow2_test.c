/* SPDX-License-Identifier: Apache-2.0
 *
 * What qcow2_test.h declares.
 */
#include "qcow2_test.h"
#include "block/dirty.h"
#include "drivers/qcow2/check.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char output[65536];
static bool in_memory;

void work_in_memory(bool yes)
{
    in_memory = yes;
}

const char *work_dir(void)
{
    return in_memory ? test_memory_dir() : test_dir();
}

const char *work_path(const char *name)
{
    return test_text("%s/%s", work_dir(), name);
}

uint64_t work_size(const char *name)
{
    struct stat st;

    assert_int_equal(stat(work_path(name), &st), 0);
    return (uint64_t)st.st_size;
}

static int vrun(const char *fmt, va_list ap)
{
    CLEANUP(free) char *command = xvasprintf(fmt, ap);
    CLEANUP(free) char *all = xasprintf("cd %s && (%s) >output.txt 2>&1", work_dir(), command);
    int status = system(all);
    FILE *f = fopen(work_path("output.txt"), "r");

    assert_non_null(f);
    output[fread(output, 1, sizeof(output) - 1, f)] = 0;
    fclose(f);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

int run(const char *fmt, ...)
{
    va_list ap;
    int r;

    va_start(ap, fmt);
    r = vrun(fmt, ap);
    va_end(ap);
    return r;
}

void must_run(const char *fmt, ...)
{
    CLEANUP(free) char *command = NULL;
    va_list ap;
    int r;

    va_start(ap, fmt);
    command = xvasprintf(fmt, ap);
    va_end(ap);
    r = run("%s", command);
    if (r != 0)
        fail_msg("'%s' ended with %d:\n%s", command, r, output);
}

const char *run_output(void)
{
    return output;
}

void expect_clean(const char *image, bool leaks)
{
    int r = run("qemu-img check -f qcow2 %s", image);

    /* qemu-img(1): 3 is "leaked clusters, but is not corrupted". */
    if (r != 0 && !(leaks && r == 3))
        fail_msg("qemu-img check %s ended with %d:\n%s", image, r, output);
}

void co_expect_clean_here(const char *image)
{
    struct node *file = co_test_open("{'driver': 'file', 'read-only': true, 'filename': '%s'}",
                                     work_path(image));
    struct qcow2_check_opts o = { .repair = QCOW2_REPAIR_NONE };
    struct qcow2_check_result found;
    struct err err = ERR_INIT;

    if (!co_qcow2_check(file, &o, &found, &err))
        fail_msg("%s: %s", image, err.text);
    if (found.corruptions || found.check_errors || found.leaks)
        fail_msg("%s has %" PRIu64 " errors and %" PRIu64 " leaks", image,
                 found.corruptions + found.check_errors, found.leaks);
    co_node_unref(file);
}

void expect_same(const char *image, const char *raw)
{
    must_run("qemu-img compare -f qcow2 -F raw %s %s", image, raw);
}

void co_make_image(const char *name, const struct qcow2_create_opts *o)
{
    struct err err = ERR_INIT;
    struct node *file;

    make_file(work_path(name), 0);
    file = co_test_open("{'driver': 'file', 'filename': '%s'}", work_path(name));
    if (!co_qcow2_create(file, o, &err))
        fail_msg("%s", err.text);
    co_node_unref(file);
}

struct node *co_open_image(const char *name, const char *more)
{
    return co_test_open("{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': '%s'}%s}",
                        work_path(name), more);
}

void forget_bitmaps(struct node *n)
{
    struct dirty_bitmap *bm;

    while ((bm = dirty_bitmap_next(n, NULL)))
        dirty_bitmap_remove(bm);
}

struct node *co_open_unfollowed(const char *name, const char *more)
{
    struct node *n = co_open_image(name, more);

    forget_bitmaps(n);
    return n;
}
