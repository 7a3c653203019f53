/* SPDX-License-Identifier: Apache-2.0
 *
 * Help for the tests of qcow2 that work on images: making them, here and with
 * QEMU's tools, and having those judge ours.
 */
#ifndef TESTS_QCOW2_TEST_H
#define TESTS_QCOW2_TEST_H

#include "drivers_test.h"
#include "drivers/qcow2/create.h"

/* Where the images of a test are: on a disk, or in memory for tests that flush a lot. */
void work_in_memory(bool yes);
const char *work_dir(void);
const char *work_path(const char *name);
/* Bytes of the file @name there. */
uint64_t work_size(const char *name);

/* Run a shell command in work_dir(); its exit status. What it prints goes to a
 * file that run_output gives. */
int run(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* The same, which must succeed. */
void must_run(const char *fmt, ...) PRINTF_LIKE(1, 2);
const char *run_output(void);

/* qemu-img check: no errors, and no leaks either unless @leaks. */
void expect_clean(const char *image, bool leaks);
/* This driver's own check finds neither; in a hundredth of the time. */
void co_expect_clean_here(const char *image);
/* qemu-img compare of the image (with its chain) to a raw file. */
void expect_same(const char *image, const char *raw);

/* Make an image with co_qcow2_create. */
void co_make_image(const char *name, const struct qcow2_create_opts *o);

/* Open the image @name of work_dir() over driver file; @more is further options of
 * the qcow2 node, beginning with a comma, or "". */
struct node *co_open_image(const char *name, const char *more);
/* The node does not follow the bitmaps that its image stores: the test owns them. */
void forget_bitmaps(struct node *n);
/* The same from the start. */
struct node *co_open_unfollowed(const char *name, const char *more);

#endif
