/* SPDX-License-Identifier: Apache-2.0
 *
 * Nodes and threads: references from elsewhere, moving a graph to another loop,
 * calls that follow it, and gathering what new options name.
 */
#include "co_test.h"
#include "memdrv.h"
#include <stdatomic.h>

#define ALL (EDGE_READ | EDGE_WRITE | EDGE_RESIZE)
#define MEM "'driver':'test-mem','size':65536"

struct open_call {
    const char *json;
    struct node *ret;
};

static int co_open_there(void *arg)
{
    struct open_call *call = arg;

    call->ret = co_test_open("%s", call->json);
    return 0;
}

static struct node *co_open_on(struct loop *loop, const char *json)
{
    struct open_call call = { json };

    assert_int_equal(co_loop_call(loop, co_open_there, &call), 0);
    return call.ret;
}

static int co_is_here(void *arg)
{
    return node_loop(arg) == loop_current();
}

/* ---- references ----------------------------------------------------------------- */

static int co_nothing(void *arg)
{
    return 0;
}

static void unref_body(void)
{
    struct loop *there = test_loop_spawn("there");
    unsigned before = mem_closed_count();
    struct node *n = co_open_on(there, "{" MEM ",'node-name':'x','backing':{" MEM "}}");
    struct err err = ERR_INIT;
    struct node *found = node_find("x", &err);

    assert_ptr_equal(found, n);
    node_unref(n);
    (void)co_loop_call(there, co_nothing, NULL);
    assert_int_equal(mem_closed_count(), before);
    /* The last one, from this thread: closed over there, before a later call runs. */
    node_unref(found);
    assert_null(node_find("x", &err));
    (void)co_loop_call(there, co_nothing, NULL);
    assert_int_equal(mem_closed_count(), before + 2);

    n = co_open_on(there, "{" MEM ",'node-name':'x'}");
    co_node_unref(n);
    assert_int_equal(mem_closed_count(), before + 3);
    test_loop_end(there);
}

static void the_last_reference_closes_a_node_on_its_own_loop(void **state)
{
    in_loop(unref_body);
}

/* ---- moving ---------------------------------------------------------------------- */

static void check_log(struct mem *m, unsigned detached, unsigned attached)
{
    assert_int_equal(mem_count(m, MEM_DETACH), detached);
    assert_int_equal(mem_count(m, MEM_ATTACH), attached);
}

static void move_body(void)
{
    struct loop *there = test_loop_spawn("there"), *here = loop_current();
    struct err err = ERR_INIT;
    struct node *low = co_test_open("{" MEM ",'node-name':'low'}");
    struct node *a = co_test_open("{" MEM ",'node-name':'a','backing':'low'}");
    struct node *b = co_test_open("{'driver':'test-filter','read-only':true,'file':'low'}");
    struct node *apart = co_test_open("{" MEM ",'node-name':'apart'}");

    assert_true(co_node_move(a, here, &err));
    check_log(mem_of(a), 0, 0);
    /* The whole graph goes, wherever one takes hold of it. */
    assert_true(co_node_move(b, there, &err));
    assert_ptr_equal(node_loop(a), there);
    assert_ptr_equal(node_loop(b), there);
    assert_ptr_equal(node_loop(low), there);
    assert_ptr_equal(node_loop(apart), here);
    assert_int_equal(co_loop_call(there, co_is_here, a), 1);
    check_log(mem_of(a), 1, 1);
    check_log(mem_of(low), 1, 1);
    assert_true(co_node_move(low, here, &err));
    assert_ptr_equal(node_loop(a), here);
    check_log(mem_of(low), 2, 2);

    struct edge *e = edge_attach_user(low, "block export 'e0'", EDGE_READ, ALL, &err);

    assert_false(co_node_move(a, there, &err));
    assert_int_equal(err.code, -EBUSY);
    assert_string_equal(err.text, "Node 'low' is in use by block export 'e0'");
    assert_ptr_equal(node_loop(a), here);
    edge_detach(e);
    co_node_unref(apart);
    co_node_unref(b);
    co_node_unref(a);
    co_node_unref(low);
    test_loop_end(there);
}

static void a_graph_moves_as_a_whole_when_it_is_idle(void **state)
{
    in_loop(move_body);
}

/* Callers from several threads keep asking for a node that keeps moving: each
 * call runs where the node is, and finds it whole. */
#define MOVES 200

static struct node *rover;
static atomic_bool over;
static atomic_uint calls;

static int co_use_here(void *arg)
{
    char byte;

    assert_ptr_equal(node_loop(rover), loop_current());
    assert_int_equal(mem_count(mem_of(rover), MEM_DETACH),
                     mem_count(mem_of(rover), MEM_ATTACH));
    assert_int_equal(co_node_pread(rover, 0, 1, &byte, 0), 0);
    atomic_fetch_add(&calls, 1);
    return 42;
}

static int co_keep_calling(void *arg)
{
    while (!atomic_load(&over)) {
        assert_int_equal(co_node_call(rover, co_use_here, NULL), 42);
        co_yield();
    }
    return 0;
}

static void co_caller(void *arg)
{
    (void)co_loop_call(arg, co_keep_calling, NULL);
}

static void follow_body(void)
{
    struct loop *homes[3] = { loop_current(), test_loop_spawn("one"), test_loop_spawn("two") };
    struct crew crew = { 0 };
    struct err err = ERR_INIT;

    rover = co_test_open("{" MEM ",'backing':{" MEM "}}");
    atomic_store(&over, false);
    atomic_store(&calls, 0);
    for (int i = 0; i < 3; i++)
        crew_start(&crew, co_caller, homes[i]);
    mem_of(rover)->dawdle = 2;
    for (int i = 1; i <= MOVES; i++) {
        if (!co_node_move(rover, homes[i % 3], &err))
            fail_msg("%s", err.text);
    }
    atomic_store(&over, true);
    co_crew_wait(&crew);
    assert_true(atomic_load(&calls) > 0);
    co_node_unref(rover);
    test_loop_end(homes[1]);
    test_loop_end(homes[2]);
}

static void calls_follow_a_node_that_moves(void **state)
{
    in_loop(follow_body);
}

/* A command that goes on keeps the node, one that ends lets it go. */
static struct mem *slow_mem;

static int co_read_slowly(void *arg)
{
    char byte;

    return co_node_pread(rover, 0, 1, &byte, 0);
}

static void co_call_slowly(void *arg)
{
    assert_int_equal(co_node_call(rover, co_read_slowly, NULL), 0);
}

static void co_release_later(void *arg)
{
    co_yield_times(10);
    mem_release(slow_mem, MEM_READ);
}

static void busy_body(void)
{
    struct loop *there = test_loop_spawn("there");
    struct crew crew = { 0 };
    struct err err = ERR_INIT;

    rover = co_test_open("{" MEM ",'node-name':'rover'}");
    slow_mem = mem_of(rover);
    slow_mem->held[MEM_READ] = true;
    crew_start(&crew, co_call_slowly, NULL);
    co_yield();
    assert_false(co_node_move(rover, there, &err));
    assert_string_equal(err.text, "Node 'rover' is busy with a command");
    crew_start(&crew, co_release_later, NULL);
    assert_true(co_node_move(rover, there, &err));
    co_crew_wait(&crew);
    co_node_unref(rover);
    test_loop_end(there);
}

static void a_command_keeps_its_node_in_place(void **state)
{
    in_loop(busy_body);
}

static int co_attach_while_moving(void *arg)
{
    struct err err = ERR_INIT;

    assert_null(edge_attach_user(rover, "a test", EDGE_READ, ALL, &err));
    return err.code;
}

static void co_move_rover(void *arg)
{
    struct err err = ERR_INIT;

    assert_true(co_node_move(rover, arg, &err));
}

static void moving_body(void)
{
    struct loop *there = test_loop_spawn("there");
    struct crew crew = { 0 };

    rover = co_test_open("{" MEM "}");
    mem_of(rover)->held[MEM_DETACH] = true;
    crew_start(&crew, co_move_rover, there);
    co_yield_times(2);
    assert_int_equal(co_attach_while_moving(NULL), -EAGAIN);
    mem_release(mem_of(rover), MEM_DETACH);
    co_crew_wait(&crew);
    assert_ptr_equal(node_loop(rover), there);
    co_node_unref(rover);
    test_loop_end(there);
}

static void a_node_that_moves_takes_no_users(void **state)
{
    in_loop(moving_body);
}

/* ---- where new nodes have to live ---------------------------------------------------- */

static bool co_loop_for(const char *text, struct loop **ret, struct err *err)
{
    json_t *json = test_json("%s", text);
    bool ok = co_node_json_loop(json, ret, err);

    json_decref(json);
    return ok;
}

static int co_hold(void *arg)
{
    struct err err = ERR_INIT;
    struct edge **e = arg;

    *e = edge_attach_user((struct node *)*e, "job 'j'", EDGE_READ, ALL, &err);
    return *e ? 0 : err.code;
}

static int co_let_go(void *arg)
{
    edge_detach(arg);
    return 0;
}

static struct edge *co_hold_node(struct node *n)
{
    struct edge *e = (struct edge *)n;

    assert_int_equal(co_loop_call(node_loop(n), co_hold, &e), 0);
    return e;
}

static void gather_body(void)
{
    struct loop *one = test_loop_spawn("one"), *two = test_loop_spawn("two"), *where;
    struct err err = ERR_INIT;
    struct node *a = co_open_on(one, "{" MEM ",'node-name':'a'}");
    struct node *b = co_open_on(two, "{" MEM ",'node-name':'b'}");
    const char *both = "{" MEM ",'backing':'a','file':{'driver':'test-filter','file':'b'}}";

    where = one;
    assert_true(co_loop_for("{" MEM "}", &where, &err));
    assert_null(where);
    assert_true(co_loop_for("{" MEM ",'backing':'nobody'}", &where, &err));
    assert_null(where);
    assert_true(co_loop_for("{'driver':'no-such','file':'a'}", &where, &err));
    assert_null(where);
    assert_true(co_loop_for("{" MEM ",'backing':'b'}", &where, &err));
    assert_ptr_equal(where, two);

    assert_true(co_loop_for(both, &where, &err));
    assert_ptr_equal(node_loop(a), where);
    assert_ptr_equal(node_loop(b), where);

    /* The one that is in use stays, the other comes. */
    assert_true(co_node_move(a, one, &err) && co_node_move(b, two, &err));
    struct edge *hold_b = co_hold_node(b);

    assert_true(co_loop_for(both, &where, &err));
    assert_ptr_equal(where, two);
    assert_ptr_equal(node_loop(a), two);
    assert_true(co_node_move(a, one, &err));
    struct edge *hold_a = co_hold_node(a);

    assert_false(co_loop_for(both, &where, &err));
    assert_int_equal(err.code, -EXDEV);
    assert_non_null(strstr(err.text, "in use by job 'j'"));
    (void)co_loop_call(one, co_let_go, hold_a);
    (void)co_loop_call(two, co_let_go, hold_b);
    co_node_unref(a);
    co_node_unref(b);
    test_loop_end(one);
    test_loop_end(two);
}

static void named_nodes_are_brought_together(void **state)
{
    in_loop(gather_body);
}

static void apart_body(void)
{
    struct loop *there = test_loop_spawn("there");
    struct node *n = co_open_on(there, "{" MEM ",'node-name':'far'}");
    struct err err;

    co_test_open_fails(&err, "{" MEM ",'backing':'far'}");
    assert_int_equal(err.code, -EXDEV);
    co_node_unref(n);
    test_loop_end(there);
}

static void a_child_on_another_loop_is_refused(void **state)
{
    in_loop(apart_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_reference_closes_a_node_on_its_own_loop),
        cmocka_unit_test(a_graph_moves_as_a_whole_when_it_is_idle),
        cmocka_unit_test(calls_follow_a_node_that_moves),
        cmocka_unit_test(a_command_keeps_its_node_in_place),
        cmocka_unit_test(a_node_that_moves_takes_no_users),
        cmocka_unit_test(named_nodes_are_brought_together),
        cmocka_unit_test(a_child_on_another_loop_is_refused),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
