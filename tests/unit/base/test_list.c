/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: the ring keeps order through every way of adding, taking and moving, and
 * an entry can be deleted at any time, twice too.
 */
#include "base/list.h"
#include "unit.h"

struct item {
    int value;
    struct list link;
};

static void expect(struct list *head, const char *digits)
{
    struct item *item;
    size_t n = 0;

    list_for_each(item, head, link)
        assert_int_equal(item->value, digits[n++] - '0');
    assert_int_equal(digits[n], '\0');
    assert_int_equal(list_empty(head), n == 0);
}

static void order_is_kept(void **state)
{
    struct list head = LIST_INIT(head);
    struct item items[4] = { { 0 }, { 1 }, { 2 }, { 3 } };

    expect(&head, "");
    assert_null(list_first(&head, struct item, link));
    list_push_tail(&head, &items[1].link);
    list_push_tail(&head, &items[2].link);
    list_push_head(&head, &items[0].link);
    list_insert_after(&items[1].link, &items[3].link);
    expect(&head, "0132");
    assert_ptr_equal(list_first(&head, struct item, link), &items[0]);
}

static void deletion_may_be_repeated(void **state)
{
    struct list head = LIST_INIT(head);
    struct item a = { 1 }, b = { 2 }, never = { 3 };

    list_init(&never.link);
    list_del(&never.link);
    list_push_tail(&head, &a.link);
    list_push_tail(&head, &b.link);
    list_del(&a.link);
    list_del(&a.link);
    expect(&head, "2");
    list_push_tail(&head, &a.link);
    expect(&head, "21");
}

static void pop_takes_from_the_head(void **state)
{
    struct list head = LIST_INIT(head);
    struct item a = { 1 }, b = { 2 };

    list_push_tail(&head, &a.link);
    list_push_tail(&head, &b.link);
    assert_ptr_equal(list_pop_head(&head, struct item, link), &a);
    assert_ptr_equal(list_pop_head(&head, struct item, link), &b);
    assert_null(list_pop_head(&head, struct item, link));
    assert_true(list_empty(&a.link));
}

static void splice_moves_everything(void **state)
{
    struct list to = LIST_INIT(to), from = LIST_INIT(from);
    struct item items[4] = { { 0 }, { 1 }, { 2 }, { 3 } };

    list_splice_tail(&to, &from);
    expect(&to, "");
    for (int i = 0; i < 4; i++)
        list_push_tail(i < 2 ? &to : &from, &items[i].link);
    list_splice_tail(&to, &from);
    expect(&to, "0123");
    expect(&from, "");
    list_splice_tail(&from, &to);
    expect(&from, "0123");
    expect(&to, "");
}

static void the_safe_walk_survives_deletion(void **state)
{
    struct list head = LIST_INIT(head);
    struct item items[5] = { { 0 }, { 1 }, { 2 }, { 3 }, { 4 } }, *item, *tmp;

    for (int i = 0; i < 5; i++)
        list_push_tail(&head, &items[i].link);
    list_for_each_safe(item, tmp, &head, link) {
        if (item->value % 2 == 0)
            list_del(&item->link);
    }
    expect(&head, "13");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_is_kept),
        cmocka_unit_test(deletion_may_be_repeated),
        cmocka_unit_test(pop_takes_from_the_head),
        cmocka_unit_test(splice_moves_everything),
        cmocka_unit_test(the_safe_walk_survives_deletion),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
