/* SPDX-License-Identifier: Apache-2.0
 *
 * Names of backups: when they appear, and what never happens to files that were
 * there.
 */
#include "app/target_name.h"
#include "base/mem.h"
#include "block/lock.h"
#include "co_test.h"
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static void put(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void check_content(const char *path, const char *text)
{
    char got[64] = "";
    FILE *f = fopen(path, "r");

    assert_non_null(f);
    assert_true(fread(got, 1, sizeof(got) - 1, f) > 0);
    fclose(f);
    assert_string_equal(got, text);
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static bool init(struct target_name *t, const char *name, bool force, bool in_place,
                 struct err *err)
{
    const struct target_name_opts o = { .name = name, .force = force, .in_place = in_place };

    return target_name_init(t, &o, err);
}

static void check_refused(const char *name, bool force, int code)
{
    struct err err = ERR_INIT;
    struct target_name t;

    assert_false(init(&t, name, force, false, &err));
    assert_int_equal(err.code, code);
    target_name_done(&t);
}

static void published_under_its_name(void **state)
{
    struct err err;
    struct target_name t;

    assert_true(init(&t, "a.qcow2", false, false, &err));
    assert_string_equal(t.format, "qcow2");
    put(target_name_job_path(&t), "backup");
    assert_false(exists("a.qcow2"));
    assert_true(target_name_publish(&t, &err));
    check_content("a.qcow2", "backup");
    assert_false(exists(target_name_job_path(&t)));
    target_name_done(&t);
    unlink("a.qcow2");
}

static void discarded_without_a_trace(void **state)
{
    struct err err;
    struct target_name t;

    assert_true(init(&t, "a.raw", false, false, &err));
    put(target_name_job_path(&t), "half");
    target_name_discard(&t, true);
    assert_false(exists(target_name_job_path(&t)));
    target_name_done(&t);
}

static void a_file_of_the_name_is_never_replaced_without_force(void **state)
{
    struct err err;
    struct target_name t;

    put("a.raw", "precious");
    check_refused("a.raw", false, -EEXIST);
    unlink("a.raw");
    /* It may also come later. */
    assert_true(init(&t, "a.raw", false, false, &err));
    put(target_name_job_path(&t), "backup");
    put("a.raw", "precious");
    assert_false(target_name_publish(&t, &err));
    assert_int_equal(err.code, -EEXIST);
    check_content("a.raw", "precious");
    /* The work is kept, and its place told. */
    target_name_discard(&t, true);
    check_content(target_name_job_path(&t), "backup");
    assert_non_null(strstr(err.text, target_name_job_path(&t)));
    unlink(target_name_job_path(&t));
    target_name_done(&t);
    unlink("a.raw");
}

static void force_replaces_at_the_end_only(void **state)
{
    struct err err;
    struct target_name t;

    put("a.raw", "old");
    assert_true(init(&t, "a.raw", true, false, &err));
    put(target_name_job_path(&t), "new");
    check_content("a.raw", "old");
    assert_true(target_name_publish(&t, &err));
    check_content("a.raw", "new");
    target_name_done(&t);
    unlink("a.raw");
}

/* As somebody has an image open. */
static int hold(const char *path)
{
    int fd = open(path, O_RDWR);
    struct err err;

    assert_true(fd >= 0);
    assert_true(image_lock_file(fd, path, false, &err));
    return fd;
}

static void what_is_in_use_is_left_alone(void **state)
{
    struct err err;
    struct target_name t;
    int fd;

    put("vm.raw", "disk");
    fd = hold("vm.raw");
    check_refused("vm.raw", true, -EBUSY);
    close(fd);
    /* Or comes into use while the backup runs. */
    assert_true(init(&t, "vm.raw", true, false, &err));
    put(target_name_job_path(&t), "backup");
    fd = hold("vm.raw");
    assert_false(target_name_publish(&t, &err));
    assert_int_equal(err.code, -EBUSY);
    check_content("vm.raw", "disk");
    close(fd);
    unlink(target_name_job_path(&t));
    target_name_done(&t);
    unlink("vm.raw");
}

static void another_backups_partial_file_is_left_alone(void **state)
{
    struct err err;
    struct target_name t;
    int fd;

    assert_true(init(&t, "a.raw", false, false, &err));
    put(target_name_job_path(&t), "theirs");
    fd = hold(target_name_job_path(&t));
    check_refused("a.raw", false, -EBUSY);
    target_name_discard(&t, false);
    assert_true(exists(target_name_job_path(&t)));
    close(fd);
    /* Nobody's: from a backup that was killed. */
    target_name_done(&t);
    assert_true(init(&t, "a.raw", false, false, &err));
    assert_false(exists(target_name_job_path(&t)));
    target_name_done(&t);
}

static void nobody_takes_a_partial_file_before_it_has_its_name(void **state)
{
    struct err err;
    struct target_name t;
    int fd;

    assert_true(init(&t, "a.raw", false, false, &err));
    put(target_name_job_path(&t), "backup");
    fd = hold(target_name_job_path(&t));
    target_name_hold(&t);
    close(fd);                   /* the job is over */
    check_refused("a.raw", false, -EBUSY);
    assert_true(target_name_publish(&t, &err));
    target_name_done(&t);
    check_content("a.raw", "backup");
    close(hold("a.raw"));        /* and it is free */
    unlink("a.raw");
}

static void a_link_that_leads_nowhere_is_refused(void **state)
{
    assert_int_equal(symlink("nothing.raw", "link.raw"), 0);
    check_refused("link.raw", false, -ENOENT);
    check_refused("link.raw", true, -ENOENT);
    unlink("link.raw");
}

static void in_place_there_is_one_name(void **state)
{
    struct err err;
    struct target_name t;
    char path[PATH_MAX];

    assert_true(init(&t, "a.qcow2", false, true, &err));
    assert_non_null(realpath(".", path));
    strcat(path, "/a.qcow2");
    assert_string_equal(target_name_job_path(&t), path);
    put("a.qcow2", "fleece");
    assert_true(target_name_publish(&t, &err));
    check_content("a.qcow2", "fleece");
    /* A job that was never started has not written there. */
    target_name_discard(&t, false);
    assert_true(exists("a.qcow2"));
    target_name_discard(&t, true);
    assert_false(exists("a.qcow2"));
    target_name_done(&t);
}

static void devices_and_exports_have_no_other_name(void **state)
{
    struct err err;
    struct target_name t;

    assert_true(init(&t, "nbd://host/x.qcow2", false, false, &err));
    assert_string_equal(target_name_job_path(&t), "nbd://host/x.qcow2");
    assert_string_equal(t.format, "raw");
    target_name_discard(&t, true);
    assert_true(target_name_publish(&t, &err));
    target_name_done(&t);
}

static void names_that_cannot_be(void **state)
{
    CLEANUP(free) char *longest = xzalloc(NAME_MAX + 1);

    memset(longest, 'x', NAME_MAX);
    check_refused("", false, -EINVAL);
    check_refused("dir/", false, -EINVAL);
    check_refused(".", false, -EISDIR);
    check_refused("/dev/null", true, -EINVAL);
    check_refused("nodir/a.raw", false, -ENOENT);
    check_refused(longest, false, -ENAMETOOLONG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_under_its_name),
        cmocka_unit_test(discarded_without_a_trace),
        cmocka_unit_test(a_file_of_the_name_is_never_replaced_without_force),
        cmocka_unit_test(force_replaces_at_the_end_only),
        cmocka_unit_test(what_is_in_use_is_left_alone),
        cmocka_unit_test(another_backups_partial_file_is_left_alone),
        cmocka_unit_test(nobody_takes_a_partial_file_before_it_has_its_name),
        cmocka_unit_test(a_link_that_leads_nowhere_is_refused),
        cmocka_unit_test(in_place_there_is_one_name),
        cmocka_unit_test(devices_and_exports_have_no_other_name),
        cmocka_unit_test(names_that_cannot_be),
    };
    char dir[] = "/tmp/stillpoint-test-XXXXXX";

    assert(mkdtemp(dir) && chdir(dir) == 0);

    int failed = cmocka_run_group_tests(tests, NULL, NULL);

    rmdir(dir);
    return failed;
}
