/* SPDX-License-Identifier: Apache-2.0
 *
 * Which loop a new disk gets.
 */
#include "co_test.h"
#include "drivers/drivers.h"
#include "qmp/placement.h"

static struct loop *pick(struct placement *p)
{
    struct err err = ERR_INIT;
    struct loop *loop = placement_pick(p, &err);

    if (!loop)
        fail_msg("%s", err.text);
    return loop;
}

struct opening {
    char text[128];
    struct node *node;
};

static int co_open_there(void *arg)
{
    struct opening *o = arg;

    o->node = co_test_open("%s", o->text);
    return 0;
}

/* What blockdev-add does: pick, open there, settle. */
static struct node *co_place(struct placement *p, const char *name)
{
    struct loop *loop = pick(p);
    struct opening o;

    snprintf(o.text, sizeof(o.text), "{'driver':'null-co','node-name':'%s'}", name);
    co_loop_call(loop, co_open_there, &o);
    placement_settled(p, loop);
    assert_ptr_equal(node_loop(o.node), loop);
    return o.node;
}

static void co_loops_come_when_needed(void)
{
    struct placement *p = placement_new(LOOP_ENGINE_AUTO, 3);

    assert_int_equal(placement_loops(p), 0);

    struct node *a = co_place(p, "a");

    assert_int_equal(placement_loops(p), 1);

    struct node *b = co_place(p, "b"), *c = co_place(p, "c"), *d = co_place(p, "d");

    assert_int_equal(placement_loops(p), 3);
    assert_ptr_not_equal(node_loop(a), loop_current());
    assert_ptr_not_equal(node_loop(a), node_loop(b));
    assert_ptr_not_equal(node_loop(b), node_loop(c));
    assert_ptr_not_equal(node_loop(a), node_loop(c));
    assert_ptr_equal(node_loop(d), node_loop(a));
    co_node_unref(a);
    co_node_unref(b);
    co_node_unref(c);
    co_node_unref(d);
    placement_free(p);
}

static void loops_are_made_when_they_are_needed(void **state)
{
    in_loop(co_loops_come_when_needed);
}

static void co_least_loaded(void)
{
    struct placement *p = placement_new(LOOP_ENGINE_AUTO, 2);
    struct node *a = co_place(p, "a"), *b = co_place(p, "b"), *c = co_place(p, "c");
    struct loop *where = node_loop(b);

    /* a and c share one loop, b is alone: it goes, and its loop is the emptiest. */
    co_node_unref(b);
    b = co_place(p, "b2");
    assert_ptr_equal(node_loop(b), where);
    co_node_unref(a);
    co_node_unref(c);
    a = co_place(p, "a2");
    assert_ptr_not_equal(node_loop(a), where);
    co_node_unref(a);
    co_node_unref(b);
    placement_free(p);
}

static void the_least_loaded_loop_is_taken(void **state)
{
    in_loop(co_least_loaded);
}

static void co_while_opening(void)
{
    struct placement *p = placement_new(LOOP_ENGINE_AUTO, 2);
    struct loop *first = pick(p), *second = pick(p);

    assert_ptr_not_equal(first, second);
    placement_settled(p, second);
    assert_ptr_equal(pick(p), second);
    placement_settled(p, first);
    placement_settled(p, second);
    assert_int_equal(placement_loops(p), 2);
    placement_free(p);
}

static void what_is_being_opened_counts(void **state)
{
    in_loop(co_while_opening);
}

static void there_is_a_cpu(void **state)
{
    assert_true(placement_usable_cpus() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loops_are_made_when_they_are_needed),
        cmocka_unit_test(the_least_loaded_loop_is_taken),
        cmocka_unit_test(what_is_being_opened_counts),
        cmocka_unit_test(there_is_a_cpu),
    };

    drivers_register_all();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
