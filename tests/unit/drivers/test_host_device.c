/* SPDX-License-Identifier: Apache-2.0
 *
 * Driver host_device on a loop device, which takes root: skipped without.
 */
#include "drivers_test.h"
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (4 * MiB)

struct device {
    int fd;
    char path[32];
    const char *file;
};

/* A loop device over a new file of SIZE bytes; false where there are none. */
static bool make_device(struct device *d, const char *file, unsigned flags)
{
    struct loop_config config = { .info.lo_flags = flags | LO_FLAGS_AUTOCLEAR };
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int nr, backing, r;

    d->file = file;
    make_file(d->file, SIZE);
    backing = open(d->file, O_RDWR | O_CLOEXEC);
    config.fd = (uint32_t)backing;
    for (;;) {
        nr = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
        snprintf(d->path, sizeof(d->path), "/dev/loop%d", nr);
        d->fd = nr < 0 ? -1 : open(d->path, O_RDWR | O_CLOEXEC);
        r = d->fd < 0 ? -1 : ioctl(d->fd, LOOP_CONFIGURE, &config);
        if (r == 0 || errno != EBUSY)
            break;
        close(d->fd);        /* somebody else was quicker */
    }
    close(backing);
    close(control);
    if (r < 0 && d->fd >= 0)
        close(d->fd);
    return r == 0;
}

static uint64_t allocated(const struct device *d)
{
    struct stat st;

    assert_int_equal(stat(d->file, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void co_use(struct device *d, const char *more)
{
    struct node *n = co_test_open("{'driver': 'host_device', 'filename': '%s',"
                                  " 'discard': 'unmap'%s}", d->path, more);
    struct err err = ERR_INIT;

    assert_int_equal(n->size, SIZE);
    assert_true(n->limits.request_align >= 512);
    assert_false(n->zero_init);
    co_fill(n, 0, SIZE, 0xcc);
    co_fill(n, 1000, 3000, 0xdd);
    co_expect(n, 1000, 3000, 0xdd);
    co_expect(n, 4000, 100, 0xcc);
    assert_int_equal(co_node_flush(n), 0);
    assert_true(co_status(n, 0, SIZE).flags & STATUS_DATA);
    assert_true(allocated(d) >= SIZE);
    assert_int_equal(co_node_write_zeroes(n, 100, MiB, REQ_MAY_UNMAP), 0);
    co_expect(n, 100, MiB, 0);
    co_expect(n, 0, 100, 0xcc);
    co_expect(n, 100 + MiB, 1000, 0xcc);
    assert_int_equal(co_node_discard(n, 2 * MiB, MiB), 0);
    assert_int_equal(co_node_write_zeroes(n, 3 * MiB, 4096, 0), 0);
    co_expect(n, 3 * MiB, 4096, 0);
    assert_int_equal(co_node_flush(n), 0);
    assert_true(allocated(d) <= 2 * MiB + 64 * KiB);
    assert_true(co_node_resize(n, SIZE, &err));
    assert_false(co_node_resize(n, SIZE + 512, &err));
    assert_non_null(strstr(err.text, "Cannot grow device"));
    assert_false(co_node_resize(n, SIZE - 512, &err));
    co_node_unref(n);
}

CO_TEST(a_block_device_is_read_written_and_freed)
{
    struct device d;

    if (!make_device(&d, test_path("device"), 0)) {
        print_message("no loop devices here\n");
        return;
    }
    co_use(&d, "");
    co_use(&d, ", 'cache': {'direct': true}");
    co_open_refused("use driver 'host_device'", "{'driver': 'file', 'filename': '%s'}", d.path);
    close(d.fd);
}

CO_TEST(a_write_protected_device_is_opened_read_only_if_it_may)
{
    struct device d;
    struct node *n;

    if (!make_device(&d, test_path("device"), LO_FLAGS_READ_ONLY)) {
        print_message("no loop devices here\n");
        return;
    }
    co_open_refused("not writable", "{'driver': 'host_device', 'filename': '%s'}", d.path);
    n = co_test_open("{'driver': 'host_device', 'filename': '%s', 'auto-read-only': true}",
                     d.path);
    assert_true(node_read_only(n));
    co_expect(n, 0, 4096, 0);
    co_node_unref(n);
    close(d.fd);
}

/* A device that cannot store what was written to it: its file is in a file system that
 * is too small, in a mount namespace of this thread. */
CO_TEST(after_a_failed_flush_no_flush_succeeds)
{
    const char *dir = test_path("small");
    struct device d;
    struct node *n;
    int r;

    assert_int_equal(mkdir(dir, 0700), 0);
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", dir, "tmpfs", 0, "size=1m") < 0 ||
        !make_device(&d, test_text("%s/device", dir), 0)) {
        print_message("no loop devices or mounts here\n");
        return;
    }
    n = co_test_open("{'driver': 'host_device', 'filename': '%s'}", d.path);
    co_fill(n, 0, SIZE, 1);
    r = co_node_flush(n);
    assert_true(r < 0);
    assert_int_equal(co_node_flush(n), r);      /* Linux itself has forgotten it */
    assert_int_equal(co_node_pwrite(n, 0, 512, (char[512]){ 1 }, REQ_FUA), 0);
    assert_int_equal(co_node_flush(n), r);
    co_node_unref(n);
    close(d.fd);
    assert_int_equal(umount2(dir, MNT_DETACH), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_block_device_is_read_written_and_freed),
    cmocka_unit_test(after_a_failed_flush_no_flush_succeeds),
    cmocka_unit_test(a_write_protected_device_is_opened_read_only_if_it_may),
};

DRIVERS_TEST_MAIN(tests)
