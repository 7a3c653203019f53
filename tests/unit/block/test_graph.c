/* SPDX-License-Identifier: Apache-2.0
 *
 * Nodes coming, being found, used, and going: names, what is inherited, who is
 * in whose way, and that a failed opening leaves nothing.
 */
#include "co_test.h"
#include "memdrv.h"
#include "base/limits.h"
#include <stdio.h>

#define ALL (EDGE_READ | EDGE_WRITE | EDGE_RESIZE)
#define MEM "'driver':'test-mem','size':65536"

static void check_refused(const char *want, const char *json)
{
    struct err err;
    unsigned before = test_node_count();

    co_test_open_fails(&err, "%s", json);
    if (!strstr(err.text, want))
        fail_msg("'%s' is not in '%s'", want, err.text);
    assert_int_equal(test_node_count(), before);
}

static void names_body(void)
{
    static const char *const bad[] = { "", "0a", "-a", "#block0", "a b", "a/b", "\xc3\xa4" };
    char text[256];
    struct err err = ERR_INIT;
    struct node *n = co_test_open("{" MEM ",'node-name':'a-b._9Z45678901234567890123456'}");
    struct node *m = co_test_open("{" MEM "}");

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        snprintf(text, sizeof(text), "{" MEM ",'node-name':'%s'}", bad[i]);
        check_refused("Invalid node-name", text);
    }
    check_refused("too long", "{" MEM ",'node-name':'a1234567890123456789012345678901'}");
    check_refused("Duplicate nodes with node-name='a-b._9Z45678901234567890123456'",
                  "{" MEM ",'node-name':'a-b._9Z45678901234567890123456'}");
    assert_int_equal(strncmp(node_name(m), "#block", 6), 0);

    struct node *found = node_find(node_name(m), &err);

    assert_ptr_equal(found, m);
    co_node_unref(found);
    assert_null(node_find("nobody", &err));
    assert_string_equal(err.text, "Cannot find device='' nor node-name='nobody'");
    co_node_unref(n);
    co_node_unref(m);
    assert_null(node_find("a-b._9Z45678901234567890123456", &err));
    n = co_test_open("{" MEM ",'node-name':'a-b._9Z45678901234567890123456'}");
    co_node_unref(n);
}

static void names_are_well_formed_and_unique(void **state)
{
    in_loop(names_body);
}

/* ---- opening ------------------------------------------------------------------- */

static void inherit_body(void)
{
    struct node *n = co_test_open(
        "{'driver':'test-filter','cache':{'direct':true,'no-flush':true},'detect-zeroes':'on',"
        "'file':{" MEM ",'backing':{" MEM ",'cache':{'direct':false}}}}");
    struct node *file = edge_node(n->file), *backing = node_backing(file);

    assert_true(n->no_cache && n->no_flush && !n->read_only && !n->discard_unmap);
    assert_true(file->no_cache && file->no_flush && !file->read_only && file->discard_unmap);
    assert_true(!backing->no_cache && backing->no_flush && backing->read_only);
    co_node_unref(n);

    n = co_test_open("{'driver':'test-filter','read-only':true,'force-share':true,"
                     "'file':{" MEM ",'discard':'ignore'}}");
    file = edge_node(n->file);
    assert_true(file->read_only && file->force_share && !file->discard_unmap);
    assert_int_equal(co_node_pwrite(n, 0, 1, "x", 0), -EPERM);

    json_t *want = test_json("{'driver':'test-filter','read-only':true,'force-share':true,"
                             "'file':{" MEM ",'discard':'ignore'}}");

    assert_true(json_equal(node_options(n), want));
    json_decref(want);
    co_node_unref(n);

    check_refused("force-share=on can only be used with read-only images",
                  "{" MEM ",'force-share':true}");
    check_refused("detect-zeroes to unmap is not allowed without",
                  "{" MEM ",'detect-zeroes':'unmap'}");
    check_refused("'driver'", "{'driver':'no-such','size':1}");
    check_refused("Parameter 'size' is missing", "{'driver':'test-mem'}");
}

static void limits_body(void)
{
    unsigned before = mem_closed_count();

    check_refused("too large", "{'driver':'test-mem','size':65536,'claim':9223372036854775807}");
    check_refused("in units of 3 ", "{" MEM ",'request-align':3}");
    check_refused("in units of 2097152 ", "{" MEM ",'request-align':2097152}");
    check_refused("units of 3 bytes", "{" MEM ",'zero-align':3}");
    check_refused("no more than 512 bytes", "{" MEM ",'request-align':4096,'max-transfer':512}");
    assert_int_equal(mem_closed_count(), before + 5);
}

static void limits_that_cannot_be_served_are_refused(void **state)
{
    in_loop(limits_body);
}

static void children_inherit(void **state)
{
    in_loop(inherit_body);
}

static void auto_read_only_body(void)
{
    struct node *n;

    check_refused("Could not open the memory for writing: Permission denied",
                  "{" MEM ",'forbid-write':true}");
    n = co_test_open("{" MEM ",'forbid-write':true,'auto-read-only':true}");
    assert_true(n->read_only);
    co_node_unref(n);

    /* From the bottom up through a format that would like to write. */
    n = co_test_open("{'driver':'test-filter','auto-read-only':true,"
                     "'file':{" MEM ",'forbid-write':true}}");
    assert_true(n->read_only && edge_node(n->file)->read_only);
    struct err err = ERR_INIT;
    struct edge *e = edge_attach_user(edge_node(n->file), "a reader", EDGE_READ, EDGE_READ, &err);

    assert_non_null(e);           /* nobody says that it writes */
    edge_detach(e);
    co_node_unref(n);

    check_refused("is read-only", "{'driver':'test-filter','file':{" MEM ",'read-only':true}}");
    check_refused("Permission denied", "{'driver':'test-filter','auto-read-only':true,"
                  "'file':{" MEM ",'forbid-write':true,'auto-read-only':false}}");
}

static void auto_read_only_falls_back(void **state)
{
    in_loop(auto_read_only_body);
}

static void failing_body(void)
{
    unsigned before = mem_closed_count();

    /* The file opens, then the backing file does not. */
    check_refused("Permission denied",
                  "{" MEM ",'file':{" MEM ",'node-name':'f'},"
                  "'backing':{" MEM ",'read-only':false,'forbid-write':true}}");
    assert_int_equal(mem_closed_count(), before + 1);
    check_refused("Cannot find device='' nor node-name='missing'",
                  "{" MEM ",'file':{" MEM ",'node-name':'f'},'backing':'missing'}");
    assert_int_equal(mem_closed_count(), before + 2);

    struct node *n = co_test_open("{" MEM ",'node-name':'f'}");

    assert_int_equal(test_node_count(), 1);
    co_node_unref(n);
}

static void a_failed_opening_leaves_nothing(void **state)
{
    in_loop(failing_body);
}

static void cycle_body(void)
{
    check_refused("Node 'a' is still being opened",
                  "{" MEM ",'node-name':'a','backing':'a'}");
    check_refused("Node 'a' is still being opened",
                  "{" MEM ",'node-name':'a','backing':{" MEM ",'backing':'a'}}");
}

static void a_node_cannot_be_its_own_child(void **state)
{
    in_loop(cycle_body);
}

static void co_open_slowly(void *arg)
{
    *(struct node **)arg = co_test_open("{" MEM ",'node-name':'slow','open-yields':5}");
}

static void early_body(void)
{
    struct node *n = NULL;
    struct crew crew = { 0 };
    struct err err = ERR_INIT;

    crew_start(&crew, co_open_slowly, &n);
    co_yield_times(2);
    assert_null(n);
    assert_null(node_find("slow", &err));
    assert_int_equal(err.code, -EAGAIN);
    assert_int_equal(test_node_count(), 0);
    check_refused("Duplicate nodes", "{" MEM ",'node-name':'slow'}");
    co_crew_wait(&crew);
    assert_ptr_equal(node_find("slow", &err), n);
    co_node_unref(n);
    co_node_unref(n);
}

static void a_node_is_not_found_before_it_is_open(void **state)
{
    in_loop(early_body);
}

/* ---- chains ------------------------------------------------------------------------ */

static void deep_chain_body(void)
{
    struct node *n = co_test_open("{" MEM ",'node-name':'n0'}");
    char byte;

    mem_fill(mem_of(n), 100, 1, MEM_IS_DATA, 'b');
    for (unsigned i = 1; i <= LIMIT_CHAIN_DEPTH; i++) {
        struct node *up = co_test_open("{'driver':'test-mem','size':512,'node-name':'n%u',"
                                       "'backing':'n%u'}", i, i - 1);

        co_node_unref(n);
        n = up;
    }
    assert_int_equal(co_node_pread(n, 100, 1, &byte, 0), 0);
    assert_int_equal(byte, 'b');
    check_refused("backing chain", "{" MEM ",'backing':'n1024'}");

    unsigned before = mem_closed_count();

    co_node_unref(n);
    assert_int_equal(mem_closed_count(), before + LIMIT_CHAIN_DEPTH + 1);
}

static void a_chain_may_be_longer_than_a_stack(void **state)
{
    in_loop(deep_chain_body);
}

static void tower_body(void)
{
    struct node *n = co_test_open("{" MEM ",'node-name':'n0'}");
    struct err err;

    for (unsigned i = 1; i <= 32; i++) {
        struct node *up = co_test_open("{'driver':'test-filter','node-name':'n%u',"
                                       "'file':'n%u'}", i, i - 1);

        co_node_unref(n);
        n = up;
    }
    assert_int_equal(co_node_pwrite(n, 0, 1, "x", 0), 0);
    assert_int_equal(co_node_flush(n), 0);
    co_test_open_fails(&err, "{'driver':'test-filter','file':'n32'}");
    assert_non_null(strstr(err.text, "stands on more than 32 nodes"));
    co_node_unref(n);
}

static void a_tower_of_filters_is_bounded(void **state)
{
    in_loop(tower_body);
}

/* ---- uses ---------------------------------------------------------------------------- */

static void check_conflict(struct node *n, unsigned perms, unsigned shared, const char *want)
{
    struct err err = ERR_INIT;

    assert_null(edge_attach_user(n, "job 'j'", perms, shared, &err));
    assert_string_equal(err.text, want);
    assert_int_equal(err.code, -EBUSY);
}

static void conflicts_body(void)
{
    struct err err = ERR_INIT;
    struct node *n = co_test_open("{" MEM ",'node-name':'x'}");
    struct edge *e = edge_attach_user(n, "block export 'e0'", EDGE_READ | EDGE_WRITE,
                                      EDGE_READ, &err);

    check_conflict(n, EDGE_READ, EDGE_READ,
                   "Node 'x' is in use by block export 'e0', which writes to it");
    check_conflict(n, EDGE_WRITE, ALL, "Node 'x' is in use by block export 'e0', "
                   "which does not let others write to it");
    check_conflict(n, EDGE_RESIZE, ALL, "Node 'x' is in use by block export 'e0', "
                   "which does not let others resize it");

    struct edge *f = edge_attach_user(n, "job 'k'", EDGE_READ, ALL, &err);

    assert_non_null(f);
    assert_false(edge_set_perms(f, EDGE_READ, EDGE_READ, &err));
    assert_string_equal(err.text, "Node 'x' is in use by block export 'e0', which writes to it");
    assert_true(edge_set_perms(e, EDGE_READ, EDGE_READ, &err));
    assert_true(edge_set_perms(f, EDGE_READ, EDGE_READ, &err));
    edge_detach(f);
    edge_detach(e);
    edge_detach(NULL);

    struct node *top = co_test_open("{" MEM ",'node-name':'top','backing':'x'}");

    check_conflict(n, EDGE_WRITE, ALL, "Node 'x' is in use by node 'top' as its backing, "
                   "which does not let others write to it");
    assert_true(node_in_use(n, &err));
    assert_string_equal(err.text, "Node 'x' is in use by node 'top' as its backing");
    assert_false(node_in_use(top, &err));
    co_node_unref(top);
    assert_false(node_in_use(n, &err));
    co_node_unref(n);

    n = co_test_open("{" MEM ",'node-name':'ro','read-only':true}");
    assert_null(edge_attach_user(n, "job 'j'", EDGE_WRITE, ALL, &err));
    assert_string_equal(err.text, "Node 'ro' is read-only");
    co_node_unref(n);
}

static void conflicts_say_who_is_in_the_way(void **state)
{
    in_loop(conflicts_body);
}

static void monitor_body(void)
{
    struct err err = ERR_INIT;
    struct node *n = co_test_open("{" MEM ",'node-name':'x','backing':{" MEM "}}");
    unsigned before = mem_closed_count();

    assert_false(co_node_monitor_del(node_ref(n), &err));
    assert_string_equal(err.text, "Node 'x' is not owned by the monitor");
    node_set_monitor_owned(n);
    assert_true(node_monitor_owned(n));

    struct edge *e = edge_attach_user(n, "block export 'e0'", EDGE_READ, ALL, &err);

    assert_false(co_node_monitor_del(node_ref(n), &err));
    assert_string_equal(err.text, "Node 'x' is in use by block export 'e0'");
    edge_detach(e);
    co_node_unref(n);
    assert_int_equal(test_node_count(), 2);
    n = node_find("x", &err);
    assert_true(co_node_monitor_del(n, &err));
    assert_int_equal(mem_closed_count(), before + 2);
    assert_int_equal(test_node_count(), 0);
}

static void deleting_waits_until_it_is_closed(void **state)
{
    in_loop(monitor_body);
}

static void storage_body(void)
{
    struct node *a = co_test_open("{" MEM ",'storage':'file:1:1','backing':"
                                  "{" MEM ",'storage':'file:1:2','node-name':'low'}}");
    struct node *b = co_test_open("{'driver':'test-filter','read-only':true,"
                                  "'file':{" MEM ",'storage':'file:1:2'}}");
    struct node *c = co_test_open("{" MEM ",'storage':'file:1:3'}");
    struct node *d = co_test_open("{" MEM ",'backing':'low'}");

    assert_true(node_shares_storage(a, b));
    assert_true(node_shares_storage(b, a));
    assert_false(node_shares_storage(a, c));
    assert_true(node_shares_storage(a, a));
    assert_true(node_shares_storage(a, d));
    assert_false(node_uses_file(a, "/nonexistent"));
    assert_false(node_uses_file(a, "/dev/null"));
    co_node_unref(d);
    co_node_unref(c);
    co_node_unref(b);
    co_node_unref(a);
}

static void shared_storage_is_seen(void **state)
{
    in_loop(storage_body);
}

static void info_body(void)
{
    struct node *n = co_test_open("{'driver':'test-filter','node-name':'x',"
                                  "'file':{" MEM ",'request-align':512,'max-transfer':4096}}");
    struct node_info info;

    node_get_info(n, &info);
    assert_int_equal(info.size, 65536);
    assert_int_equal(info.request_align, 1);
    assert_int_equal(info.max_transfer, 0);
    assert_int_equal(info.allocated, UINT64_MAX);
    assert_string_equal(info.filename, "");
    node_get_info(edge_node(n->file), &info);
    assert_int_equal(info.request_align, 512);
    assert_int_equal(info.max_transfer, 4096);
    assert_string_equal(node_driver_name(n), "test-filter");
    assert_ptr_equal(node_skip_filters(n), node_child(n, "file"));
    assert_null(node_child(n, "backing"));
    assert_null(node_format_info(n));
    co_node_unref(n);
}

static void facts_come_from_the_node_and_what_is_below(void **state)
{
    in_loop(info_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_well_formed_and_unique),
        cmocka_unit_test(children_inherit),
        cmocka_unit_test(limits_that_cannot_be_served_are_refused),
        cmocka_unit_test(auto_read_only_falls_back),
        cmocka_unit_test(a_failed_opening_leaves_nothing),
        cmocka_unit_test(a_node_cannot_be_its_own_child),
        cmocka_unit_test(a_node_is_not_found_before_it_is_open),
        cmocka_unit_test(a_chain_may_be_longer_than_a_stack),
        cmocka_unit_test(a_tower_of_filters_is_bounded),
        cmocka_unit_test(conflicts_say_who_is_in_the_way),
        cmocka_unit_test(deleting_waits_until_it_is_closed),
        cmocka_unit_test(shared_storage_is_seen),
        cmocka_unit_test(facts_come_from_the_node_and_what_is_below),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
