/* SPDX-License-Identifier: Apache-2.0
 *
 * Disks and their doors: requests wait outside while a door is shut, come in
 * again in order, and what is inside is waited for, with a deadline.
 */
#include "co_test.h"
#include "memdrv.h"
#include "block/disk.h"

#define ALL (EDGE_READ | EDGE_WRITE | EDGE_RESIZE)
#define MSEC NSEC_PER_MSEC

static struct disk_user *open_user(struct node *n, const char *who)
{
    struct err err = ERR_INIT;
    struct disk_user *u = disk_open(n, who, EDGE_READ | EDGE_WRITE, ALL, &err);

    if (!u)
        fail_msg("%s", err.text);
    return u;
}

static char buf[512];
static int order[64];
static unsigned n_order;

struct request_job {
    struct disk_user *u;
    int id;
};

static void co_request(void *arg)
{
    struct request_job *job = arg;
    struct iovec iov = { buf, sizeof(buf) };

    assert_int_equal(co_disk_pwritev(job->u, 512 * (uint64_t)job->id, 512, &iov, 1, 0), 0);
    order[n_order++] = job->id;
}

static void start_requests(struct crew *crew, struct request_job *jobs, struct disk_user *u,
                           int first, int n)
{
    for (int i = first; i < first + n; i++) {
        jobs[i] = (struct request_job){ u, i };
        crew_start(crew, co_request, &jobs[i]);
    }
}

static void waiting_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536}");
    struct disk_user *u = open_user(n, "a test");
    struct mem *m = mem_of(n);
    struct request_job jobs[64];
    struct crew crew = { 0 };

    n_order = 0;
    assert_int_equal(co_shut_doors(n, DEADLINE_NEVER), 0);
    start_requests(&crew, jobs, u, 0, 8);
    co_yield_times(5);
    assert_int_equal(m->n_log, 0);
    open_doors(n);
    start_requests(&crew, jobs, u, 8, 8);     /* behind those who waited */
    co_crew_wait(&crew);
    assert_int_equal(mem_count(m, MEM_WRITE), 16);
    for (int i = 0; i < 16; i++) {
        assert_int_equal(mem_nth(m, MEM_WRITE, (unsigned)i)->off, 512 * i);
        assert_int_equal(order[i], i);
    }
    disk_close(u);
    co_node_unref(n);
}

static void requests_wait_at_a_shut_door_in_order(void **state)
{
    in_loop(waiting_body);
}

/* Nothing comes in, also not those who were on their way. */
static void check_still(struct mem *m)
{
    unsigned before = mem_count(m, MEM_WRITE);

    assert_int_equal(m->in_flight, 0);
    co_yield_times(2);
    assert_int_equal(mem_count(m, MEM_WRITE), before);
}

/* The door shuts again while some that waited are on their way in. */
static void reshut_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536}");
    struct disk_user *u = open_user(n, "a test");
    struct mem *m = mem_of(n);
    struct request_job jobs[64];
    struct crew crew = { 0 };
    uint64_t seed = test_seed(3);

    for (int round = 0; round < 100; round++) {
        mem_clear_log(m);
        n_order = 0;
        m->dawdle = round % 4;
        assert_int_equal(co_shut_doors(n, DEADLINE_NEVER), 0);
        for (int i = 0; i < 32; i += 4) {
            start_requests(&crew, jobs, u, i, 4);
            co_yield_times((unsigned)test_random(&seed, 3));
            open_doors(n);
            co_yield_times((unsigned)test_random(&seed, 3));
            assert_int_equal(co_shut_doors(n, DEADLINE_NEVER), 0);
            check_still(m);
        }
        open_doors(n);
        co_crew_wait(&crew);
        for (int i = 0; i < 32; i++)
            assert_int_equal(mem_nth(m, MEM_WRITE, (unsigned)i)->off, 512 * i);
    }
    disk_close(u);
    co_node_unref(n);
}

static void order_is_kept_when_doors_shut_again(void **state)
{
    in_loop(reshut_body);
}

struct closer {
    struct node *n;
    uint64_t deadline;
    int result;
    bool done;
};

static void co_close_doors(void *arg)
{
    struct closer *c = arg;

    c->result = co_shut_doors(c->n, c->deadline);
    c->done = true;
}

static void inside_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536}");
    struct disk_user *u = open_user(n, "a test");
    struct mem *m = mem_of(n);
    struct request_job jobs[64];
    struct closer c = { .n = n, .deadline = DEADLINE_NEVER };
    struct crew crew = { 0 };

    n_order = 0;
    m->held[MEM_WRITE] = true;
    start_requests(&crew, jobs, u, 0, 3);
    co_yield_times(2);
    assert_int_equal(m->in_flight, 3);
    crew_start(&crew, co_close_doors, &c);
    co_yield_times(3);
    start_requests(&crew, jobs, u, 3, 1);
    co_yield_times(3);
    assert_false(c.done);
    assert_int_equal(m->in_flight, 3);
    mem_release(m, MEM_WRITE);
    co_yield_times(5);
    assert_true(c.done && c.result == 0);
    assert_int_equal(n_order, 3);
    open_doors(n);
    co_crew_wait(&crew);
    assert_int_equal(n_order, 4);
    disk_close(u);
    co_node_unref(n);
}

static void what_is_inside_is_waited_for(void **state)
{
    in_loop(inside_body);
}

static void deadline_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536}");
    struct disk_user *u = open_user(n, "a test");
    struct mem *m = mem_of(n);
    struct request_job jobs[64];
    struct crew crew = { 0 };

    n_order = 0;
    m->held[MEM_WRITE] = true;
    start_requests(&crew, jobs, u, 0, 1);
    co_yield();
    m->held[MEM_WRITE] = false;               /* for those who come later */
    assert_int_equal(co_shut_doors(n, loop_now() + 5 * MSEC), -ETIMEDOUT);
    start_requests(&crew, jobs, u, 1, 1);
    co_yield_times(3);
    assert_int_equal(n_order, 1);             /* open again: the second is through */
    assert_int_equal(order[0], 1);
    assert_int_equal(co_shut_doors(n, 0), -ETIMEDOUT);
    mem_release(m, MEM_WRITE);
    co_crew_wait(&crew);
    assert_int_equal(co_shut_doors(n, 0), 0); /* nothing to wait for */
    open_doors(n);
    disk_close(u);
    co_node_unref(n);
}

static void a_deadline_opens_the_doors_again(void **state)
{
    in_loop(deadline_body);
}

static void nesting_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536}");
    struct disk_user *u = open_user(n, "a test");
    struct request_job jobs[64];
    struct crew crew = { 0 };

    n_order = 0;
    assert_int_equal(co_shut_doors(n, DEADLINE_NEVER), 0);
    assert_int_equal(co_shut_doors(n, DEADLINE_NEVER), 0);
    start_requests(&crew, jobs, u, 0, 1);
    open_doors(n);
    co_yield_times(3);
    assert_int_equal(n_order, 0);
    open_doors(n);
    co_crew_wait(&crew);
    assert_int_equal(n_order, 1);
    disk_close(u);
    co_node_unref(n);
}

static void shutting_nests(void **state)
{
    in_loop(nesting_body);
}

/* Doors of every disk above the node, and of no other; also of one made later.
 * What a node above asks of a node below never meets a door. */
static void graph_body(void)
{
    struct node *low = co_test_open("{'driver':'test-mem','size':65536,'node-name':'low'}");
    struct node *top = co_test_open("{'driver':'test-mem','size':65536,'backing':'low',"
                                    "'read-only':true}");
    struct node *apart = co_test_open("{'driver':'test-mem','size':65536}");
    struct err err = ERR_INIT;
    struct disk_user *ut = disk_open(top, "top", EDGE_READ, ALL, &err);
    struct disk_user *ua = open_user(apart, "apart");
    struct request_job jobs[64];
    struct crew crew = { 0 };
    struct iovec iov = { buf, 512 };

    n_order = 0;
    mem_fill(mem_of(low), 0, 512, MEM_IS_DATA, 'l');
    assert_int_equal(co_shut_doors(top, DEADLINE_NEVER), 0);
    struct disk_user *ul = disk_open(low, "low", EDGE_READ, ALL, &err);

    assert_int_equal(co_disk_preadv(ul, 0, 512, &iov, 1, 0), 0);   /* below is open */
    assert_int_equal(co_node_preadv(top, 0, 512, &iov, 1, 0), 0);  /* inside, no door */
    assert_int_equal(buf[0], 'l');
    start_requests(&crew, jobs, ua, 0, 1);
    co_crew_wait(&crew);
    open_doors(top);
    disk_close(ul);
    disk_close(ut);

    assert_int_equal(co_shut_doors(low, DEADLINE_NEVER), 0);
    ut = disk_open(top, "top", EDGE_READ, ALL, &err);

    struct closer c = { .n = apart, .deadline = DEADLINE_NEVER };

    crew_start(&crew, co_close_doors, &c);
    co_crew_wait(&crew);
    assert_int_equal(c.result, 0);
    open_doors(apart);
    assert_int_equal(disk_node(ut) == top, 1);
    open_doors(low);
    assert_int_equal(co_disk_preadv(ut, 0, 512, &iov, 1, 0), 0);
    disk_close(ut);
    disk_close(ua);
    co_node_unref(top);
    co_node_unref(low);
    co_node_unref(apart);
}

static void doors_above_the_node_are_shut(void **state)
{
    in_loop(graph_body);
}

static void co_read_top(void *arg)
{
    struct disk_user *u = arg;
    struct iovec iov = { buf, 512 };

    assert_int_equal(co_disk_preadv(u, 0, 512, &iov, 1, 0), 0);
    n_order++;
}

/* Who only reads a node as a backing file does not disturb it, and is not disturbed. */
static void reader_body(void)
{
    struct node *low = co_test_open("{'driver':'test-mem','size':65536,'node-name':'low'}");
    struct node *top = co_test_open("{'driver':'test-mem','size':65536,'backing':'low',"
                                    "'live':true}");
    struct disk_user *u = open_user(top, "a slow target");
    struct request_job jobs[1];
    struct crew crew = { 0 };

    n_order = 0;
    mem_of(top)->held[MEM_WRITE] = true;
    start_requests(&crew, jobs, u, 0, 1);
    co_yield();
    assert_int_equal(co_shut_doors(low, loop_now() + 10 * NSEC_PER_MSEC), 0);
    mem_release(mem_of(top), MEM_WRITE);
    co_crew_wait(&crew);
    co_read_top(u);
    assert_int_equal(n_order, 2);
    open_doors(low);
    disk_close(u);
    co_node_unref(top);
    co_node_unref(low);
}

static void an_overlay_and_its_backing_file_do_not_wait_for_each_other(void **state)
{
    in_loop(reader_body);
}

static void born_shut_body(void)
{
    struct node *low = co_test_open("{'driver':'test-mem','size':65536,'node-name':'low'}");
    struct err err = ERR_INIT;
    struct crew crew = { 0 };

    n_order = 0;
    assert_int_equal(co_shut_doors(low, DEADLINE_NEVER), 0);
    struct node *top = co_test_open("{'driver':'test-filter','file':'low'}");
    struct disk_user *u = disk_open(top, "top", EDGE_READ, ALL, &err);

    crew_start(&crew, co_read_top, u);
    co_yield_times(4);
    assert_int_equal(n_order, 0);
    open_doors(low);
    co_crew_wait(&crew);
    assert_int_equal(n_order, 1);
    disk_close(u);
    co_node_unref(top);
    co_node_unref(low);
}

static void a_disk_made_over_a_shut_node_is_shut(void **state)
{
    in_loop(born_shut_body);
}

/* Somebody waits for a disk to be quiet while its last user goes. */
static void co_request_and_close(void *arg)
{
    struct request_job *job = arg;

    co_request(job);
    disk_close(job->u);
}

static void last_user_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536}");
    struct request_job job = { open_user(n, "a test"), 0 };
    struct closer c = { .n = n, .deadline = DEADLINE_NEVER };
    struct crew crew = { 0 };

    mem_of(n)->held[MEM_WRITE] = true;
    crew_start(&crew, co_request_and_close, &job);
    co_yield();
    crew_start(&crew, co_close_doors, &c);
    co_yield_times(2);
    mem_release(mem_of(n), MEM_WRITE);
    co_crew_wait(&crew);
    assert_true(c.done && c.result == 0);
    open_doors(n);
    co_node_unref(n);
}

static void the_last_user_may_go_while_doors_shut(void **state)
{
    in_loop(last_user_body);
}

static void perms_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536,'node-name':'d'}");
    struct err err = ERR_INIT;
    struct iovec iov = { buf, 512 };
    struct disk_user *r = disk_open(n, "reader", EDGE_READ, EDGE_READ | EDGE_WRITE, &err);

    assert_int_equal(co_disk_pwritev(r, 0, 512, &iov, 1, 0), -EPERM);
    assert_int_equal(co_disk_write_zeroes(r, 0, 512, 0), -EPERM);
    assert_int_equal(co_disk_discard(r, 0, 512), -EPERM);
    assert_int_equal(co_disk_preadv(r, 0, 512, &iov, 1, 0), 0);
    assert_int_equal(co_disk_flush(r), 0);
    assert_true(disk_set_perms(r, EDGE_READ, EDGE_READ, &err));
    assert_null(disk_open(n, "writer", EDGE_WRITE, ALL, &err));
    assert_string_equal(err.text, "Node 'd' is in use by reader, which does not let others "
                        "write to it");
    assert_true(disk_set_perms(r, EDGE_READ | EDGE_WRITE, EDGE_READ, &err));
    assert_int_equal(co_disk_pwritev(r, 0, 512, &iov, 1, 0), 0);
    assert_int_equal(co_disk_write_zeroes(r, 0, 512, 0), 0);

    struct block_status st;

    assert_int_equal(co_disk_status(r, 0, 512, &st, NULL), 0);
    assert_int_equal(st.flags, STATUS_ZERO | STATUS_ALLOCATED);
    disk_close(r);
    disk_close(NULL);
    co_node_unref(n);
}

static void a_user_does_only_what_it_said(void **state)
{
    in_loop(perms_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_wait_at_a_shut_door_in_order),
        cmocka_unit_test(order_is_kept_when_doors_shut_again),
        cmocka_unit_test(what_is_inside_is_waited_for),
        cmocka_unit_test(a_deadline_opens_the_doors_again),
        cmocka_unit_test(shutting_nests),
        cmocka_unit_test(doors_above_the_node_are_shut),
        cmocka_unit_test(a_disk_made_over_a_shut_node_is_shut),
        cmocka_unit_test(an_overlay_and_its_backing_file_do_not_wait_for_each_other),
        cmocka_unit_test(the_last_user_may_go_while_doors_shut),
        cmocka_unit_test(a_user_does_only_what_it_said),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
