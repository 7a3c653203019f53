/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: with lazy refcounts the image says that it is dirty before that may be
 * true, and no longer than it is (I-Q10); without them it never does.
 * Method: the file's bytes, and QEMU's check and repair of what a crash leaves: the
 * file as it is after a flush, copied.
 */
#include "drivers/qcow2/format.h"
#include "qcow2_test.h"

static uint64_t incompatible(const char *name)
{
    uint8_t buf[8];

    file_read(work_path(name), QCOW2_FIELD_INCOMPATIBLE, buf, sizeof(buf));
    return load_be64(buf);
}

CO_TEST(the_dirty_bit_is_there_while_it_is_needed)
{
    struct node *n;

    must_run("qemu-img create -q -f qcow2 -o lazy_refcounts=on l.qcow2 8M");
    n = co_open_image("l.qcow2", "");
    co_expect(n, 0, MiB, 0);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(incompatible("l.qcow2"), 0);
    co_fill(n, 0, MiB, 1);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(incompatible("l.qcow2"), QCOW2_INCOMPAT_DIRTY);

    /* The power goes: entries are there, refcounts are not. */
    must_run("cp l.qcow2 crashed.qcow2");
    must_run("! qemu-img check -f qcow2 crashed.qcow2");
    must_run("cp l.qcow2 opened.qcow2");
    must_run("qemu-img check -r all -f qcow2 crashed.qcow2");
    expect_clean("crashed.qcow2", false);
    must_run("qemu-io -f qcow2 -c 'read -P 1 0 1M' -c 'read -P 0 1M 7M' crashed.qcow2 | tee o; "
             "! grep -i fail o");

    /* Opening it for writing is enough; for reading nothing is changed. */
    struct node *again = co_open_image("opened.qcow2", ", 'read-only': true");

    co_expect(again, 0, MiB, 1);
    co_node_unref(again);
    assert_int_equal(incompatible("opened.qcow2"), QCOW2_INCOMPAT_DIRTY);
    again = co_open_image("opened.qcow2", "");
    assert_int_equal(incompatible("opened.qcow2"), 0);
    co_expect(again, 0, MiB, 1);
    co_fill(again, 2 * MiB, MiB, 3);
    co_expect(again, MiB, MiB, 0);
    co_node_unref(again);
    expect_clean("opened.qcow2", false);

    co_node_unref(n);
    assert_int_equal(incompatible("l.qcow2"), 0);
    expect_clean("l.qcow2", false);

    /* Writes in place need no refcount. */
    n = co_open_image("l.qcow2", "");
    co_fill(n, 0, MiB, 2);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(incompatible("l.qcow2"), 0);
    co_node_unref(n);
}

CO_TEST(the_option_is_stronger_than_the_image)
{
    struct node *n;

    co_make_image("l.qcow2", &(struct qcow2_create_opts){ .size = MiB, .lazy_refcounts = true });
    must_run("qemu-img info -f qcow2 l.qcow2 | grep 'lazy refcounts: true'");
    n = co_open_image("l.qcow2", ", 'lazy-refcounts': false");
    co_fill(n, 0, MiB, 1);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(incompatible("l.qcow2"), 0);
    must_run("cp l.qcow2 crashed.qcow2");
    expect_clean("crashed.qcow2", false);
    co_node_unref(n);

    co_make_image("s.qcow2", &(struct qcow2_create_opts){ .size = MiB });
    n = co_open_image("s.qcow2", ", 'lazy-refcounts': true");
    co_fill(n, 0, MiB, 1);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(incompatible("s.qcow2"), QCOW2_INCOMPAT_DIRTY);
    co_node_unref(n);
    assert_int_equal(incompatible("s.qcow2"), 0);
    expect_clean("s.qcow2", false);
    must_run("qemu-img info -f qcow2 s.qcow2 | grep 'lazy refcounts: false'");

    co_make_image("v2.qcow2", &(struct qcow2_create_opts){ .size = MiB, .version = 2 });
    co_open_refused("compatibility level", "{'driver': 'qcow2', 'lazy-refcounts': true, 'file': "
                    "{'driver': 'file', 'filename': '%s'}}", work_path("v2.qcow2"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_dirty_bit_is_there_while_it_is_needed),
        cmocka_unit_test(the_option_is_stronger_than_the_image),
    };

    return drivers_test_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests));
}
