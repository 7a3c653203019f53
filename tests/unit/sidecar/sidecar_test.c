/* SPDX-License-Identifier: Apache-2.0
 *
 * What sidecar_test.h declares.
 */
#include "sidecar_test.h"
#include "base/iov.h"
#include "base/mem.h"
#include <stdio.h>
#include <time.h>
#include <unistd.h>

struct test_image image;

static char folder[64], path[128];

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME_COARSE, &ts);
    return ts.tv_sec * (int64_t)NSEC_PER_SEC + ts.tv_nsec;
}

void image_touch(void)
{
    image.id.mtime_ns = image.id.ctime_ns = now_ns();
}

static bool co_image_open(struct node *n, const void *opts, struct err *err)
{
    n->size = image.size;
    n->storage_id = xasprintf("test:1");
    return true;
}

static int co_image_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                           int niov, unsigned flags)
{
    if (image.data)
        iov_from_buf(iov, niov, 0, image.data + off, len);
    return 0;
}

static int co_image_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                            int niov, unsigned flags)
{
    CLEANUP(free) char *buf = xmalloc(len);

    iov_to_buf(buf, iov, niov, 0, len);
    if (image.saw)
        image.saw(false, off, len, buf);
    co_yield_times(2);
    if (image.data)
        memcpy(image.data + off, buf, len);
    image_touch();
    if (image.saw)
        image.saw(true, off, len, buf);
    return 0;
}

static bool co_image_resize(struct node *n, uint64_t size, struct err *err)
{
    assert(size <= image.size);
    n->size = size;
    image_touch();
    return true;
}

static void image_info(struct node *n, struct node_info *ret)
{
    snprintf(ret->filename, sizeof(ret->filename), "%s/disk", folder);
}

static void co_image_identify(struct node *n, struct storage_identity *ret)
{
    *ret = image.id;
    ret->size = n->size;
}

static const struct schema_type no_options = {
    .name = "TestImage", .kind = SCHEMA_STRUCT, .size = 1,
    .members = (const struct schema_member[]){ SCHEMA_END },
};

static const struct driver image_driver = {
    .name = "test-image",
    .doc = "a disk whose content outlives its node",
    .options = &no_options,
    .is_protocol = true,
    .co_open = co_image_open,
    .co_preadv = co_image_preadv,
    .co_pwritev = co_image_pwritev,
    .co_resize = co_image_resize,
    .get_info = image_info,
    .co_identify = co_image_identify,
};

void sidecar_test_begin(uint64_t size, bool with_data)
{
    CLEANUP(free) char *disk = NULL;
    FILE *f;

    snprintf(folder, sizeof(folder), "/tmp/stillpoint-sidecar-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/disk.bitmaps", folder);
    disk = xasprintf("%s/disk", folder);
    f = fopen(disk, "w");
    assert_non_null(f);
    fclose(f);
    image.size = size;
    image.data = with_data ? xzalloc(size) : NULL;
    image.id = (struct storage_identity){ .kind = STORAGE_FILE, .dev = 7, .ino = 8 };
    image_touch();
    driver_register(&image_driver);
    sidecar_register();
}

void sidecar_test_end(void)
{
    CLEANUP(free) char *command = xasprintf("rm -rf %s", folder);

    assert_int_equal(system(command), 0);
    free(MOVE(image.data));
}

const char *sidecar_test_path(void)
{
    return path;
}

struct node *co_open_image(bool read_only)
{
    return co_test_open("{'driver':'test-image','read-only':%s}", read_only ? "true" : "false");
}

struct dirty_bitmap *co_add_persistent(struct node *n, const char *name, uint32_t granularity)
{
    struct err err = ERR_INIT;
    struct dirty_bitmap *bm;

    if (!co_dirty_keep(n, &err))
        fail_msg("%s", err.text);
    bm = dirty_bitmap_add(n, &(struct dirty_bitmap_opts){
        .name = name, .granularity = granularity, .persistent = true }, &err);
    if (!bm || !co_dirty_settle(n, &err))
        fail_msg("%s", err.text);
    return bm;
}

struct dirty_bitmap *find_bitmap(struct node *n, const char *name)
{
    struct err err = ERR_INIT;
    struct dirty_bitmap *bm = dirty_bitmap_find(n, name, &err);

    if (!bm)
        fail_msg("%s", err.text);
    return bm;
}
