/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk in memory whose content and identity outlive its node, as an image's do, so that
 * sidecar files can be tested without drivers; and a folder for their files.
 */
#ifndef TESTS_SIDECAR_TEST_H
#define TESTS_SIDECAR_TEST_H

#include "block/keeper.h"
#include "co_test.h"
#include "sidecar/sidecar.h"

struct test_image {
    unsigned char *data;             /* NULL: nobody reads it */
    uint64_t size;
    struct storage_identity id;
    /* Sees each write before it is done and after; may be NULL. */
    void (*saw)(bool end, uint64_t off, uint64_t len, const void *data);
};
extern struct test_image image;

/* Before everything: the driver "test-image", and a folder of its own. */
void sidecar_test_begin(uint64_t size, bool with_data);
void sidecar_test_end(void);
/* The sidecar file of the disk; static. */
const char *sidecar_test_path(void);

/* Somebody writes: the image's times are now. */
void image_touch(void);

struct node *co_open_image(bool read_only);
struct dirty_bitmap *co_add_persistent(struct node *n, const char *name, uint32_t granularity);
struct dirty_bitmap *find_bitmap(struct node *n, const char *name);

#endif
