/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: an error carries its code and a whole sentence, is cut visibly, and may
 * be NULL.
 */
#include "base/err.h"
#include "unit.h"
#include <fcntl.h>
#include <unistd.h>

static void set_fills_and_says_false(void **state)
{
    struct err err = ERR_INIT;

    assert_false(err_set(&err, -EINVAL, "node '%s' has %d children", "a", 2));
    assert_int_equal(err.code, -EINVAL);
    assert_int_equal(err.class, ERR_GENERIC);
    assert_string_equal(err.text, "node 'a' has 2 children");
    assert_false(err_set_class(&err, ERR_DEVICE_NOT_FOUND, -ENOENT, "x"));
    assert_string_equal(err_class_name(err.class), "DeviceNotFound");
    assert_int_equal(err.code, -ENOENT);
}

static void errno_is_said_in_words(void **state)
{
    struct err err = ERR_INIT;

    assert_false(err_errno(&err, -ENOENT, "Could not open '%s'", "/x"));
    assert_string_equal(err.text, "Could not open '/x': No such file or directory");
    assert_int_equal(err.code, -ENOENT);
}

static void prefix_goes_before(void **state)
{
    struct err err = ERR_INIT;

    err_set_class(&err, ERR_DEVICE_NOT_FOUND, -EIO, "reading failed");
    err_prefix(&err, "disk '%s': ", "d");
    assert_string_equal(err.text, "disk 'd': reading failed");
    assert_int_equal(err.code, -EIO);
    assert_int_equal(err.class, ERR_DEVICE_NOT_FOUND);
}

static void long_text_is_cut_visibly(void **state)
{
    struct err err = ERR_INIT;
    char text[3000];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    err_set(&err, -EINVAL, "%s", text);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    assert_string_equal(err.text + sizeof(err.text) - 4, "...");

    err_set(&err, -EINVAL, "fits");
    err_prefix(&err, "%s", text);
    assert_string_equal(err.text + sizeof(err.text) - 4, "...");

    err_errno(&err, -EIO, "%s", text);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    assert_string_equal(err.text + sizeof(err.text) - 4, "...");

    text[sizeof(err.text) - 1] = '\0';      /* just as long as there is room */
    err_set(&err, -EINVAL, "%s", text);
    assert_string_equal(err.text, text);
}

static void nobody_need_listen(void **state)
{
    assert_false(err_set(NULL, -EINVAL, "x"));
    assert_false(err_errno(NULL, -EINVAL, "x"));
    err_prefix(NULL, "x");
}

static void cleanup_close_closes(void **state)
{
    int copy;
    {
        __attribute__((cleanup(cleanup_close))) int fd = open("/dev/null", O_RDONLY);
        __attribute__((cleanup(cleanup_close))) int none UNUSED = -1;

        assert_true(fd >= 0);
        copy = fd;
    }
    assert_int_equal(fcntl(copy, F_GETFD), -1);
    assert_int_equal(errno, EBADF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(set_fills_and_says_false),
        cmocka_unit_test(errno_is_said_in_words),
        cmocka_unit_test(prefix_goes_before),
        cmocka_unit_test(long_text_is_cut_visibly),
        cmocka_unit_test(nobody_need_listen),
        cmocka_unit_test(cleanup_close_closes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
