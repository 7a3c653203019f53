/* SPDX-License-Identifier: Apache-2.0
 *
 * What names that people type say about images.
 */
#include "app/image_name.h"
#include "co_test.h"
#include <fcntl.h>
#include <unistd.h>

static void the_ending_says_the_format(void **state)
{
    static const char *const qcow2[] = { "a.qcow2", "/x/a.qcow", "./a.b.qcow2", "a:b.qcow2" };
    static const char *const raw[] = { "a.raw", "a.img", "a.iso", "a", "", ".qcow2", "a.qcow2.bak",
                                       "qcow2", "/dev/sda", "nbd://host/a.qcow2",
                                       "nbd+unix:///a.qcow2?socket=/x.qcow2" };

    for (size_t i = 0; i < ARRAY_SIZE(qcow2); i++)
        assert_string_equal(image_format_by_name(qcow2[i]), "qcow2");
    for (size_t i = 0; i < ARRAY_SIZE(raw); i++)
        assert_string_equal(image_format_by_name(raw[i]), "raw");
}

static void write_file(const char *path, const void *bytes, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, len), len);
    close(fd);
}

static void raw_by_name_is_refused_for_what_looks_like_qcow2(void **state)
{
    struct err err = ERR_INIT;

    write_file("x.img", "QFI\xfb and more", 12);
    assert_null(image_format_to_read("x.img", NULL, &err));
    assert_non_null(strstr(err.text, "--format"));
    assert_string_equal(image_format_to_read("x.img", "raw", &err), "raw");
    assert_string_equal(image_format_to_read("x.img", "qcow2", &err), "qcow2");
    write_file("x.img", "QFI", 3);
    assert_string_equal(image_format_to_read("x.img", NULL, &err), "raw");
    write_file("x.img", "QFJ\xfb and more", 12);
    assert_string_equal(image_format_to_read("x.img", NULL, &err), "raw");
    assert_string_equal(image_format_to_read("not-there.img", NULL, &err), "raw");
    unlink("x.img");
}

static void names_in_images_count_from_the_image(void **state)
{
    static const struct {
        const char *by, *name, *path;
    } cases[] = {
        { "a.qcow2", "b.raw", "b.raw" },
        { "dir/a.qcow2", "b.raw", "dir/b.raw" },
        { "/dir/sub/a.qcow2", "../b.raw", "/dir/sub/../b.raw" },
        { "dir/a.qcow2", "/b.raw", "/b.raw" },
        { "dir/a.qcow2", "nbd://host/x", "nbd://host/x" },
        { "nbd://host/x", "b.raw", "b.raw" },
        { "/a.qcow2", "b.raw", "/b.raw" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char *path = image_path_beside(cases[i].by, cases[i].name);

        assert_string_equal(path, cases[i].path);
        free(path);
    }
}

static void disks_are_called_as_their_files(void **state)
{
    static const struct {
        const char *image, *name;
    } cases[] = {
        { "disk.qcow2", "disk" },
        { "/images/web.1.raw", "web.1" },
        { "/dev/vg/root", "root" },
        { ".hidden", ".hidden" },
        { "plain", "plain" },
        { "nbd://host:10809/db", "db" },
        { "nbd+unix:///db.qcow2?socket=/run/x.sock", "db" },
        { "nbd://host/", "" },
        { "dir/", "" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char *name = image_disk_name(cases[i].image);

        assert_string_equal(name, cases[i].name);
        free(name);
    }
}

static void absolute_paths_start_at_the_root(void **state)
{
    struct err err;
    char *path = image_absolute_path("/a/../b", &err);

    assert_string_equal(path, "/a/../b");
    free(path);
    assert_int_equal(chdir("/"), 0);
    path = image_absolute_path("b", &err);
    assert_string_equal(path, "//b");
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_ending_says_the_format),
        cmocka_unit_test(raw_by_name_is_refused_for_what_looks_like_qcow2),
        cmocka_unit_test(names_in_images_count_from_the_image),
        cmocka_unit_test(disks_are_called_as_their_files),
        cmocka_unit_test(absolute_paths_start_at_the_root),
    };
    char dir[] = "/tmp/stillpoint-test-XXXXXX";

    assert(mkdtemp(dir) && chdir(dir) == 0);

    int failed = cmocka_run_group_tests(tests, NULL, NULL);

    rmdir(dir);
    return failed;
}
