/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: exports come and go, servers start and stop, with clients connected,
 * requests in flight and a disk that hangs; what is refused says why.
 */
#include "nbd_rig.h"
#include "base/limits.h"
#include "base/mem.h"
#include "loop/co_io.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static struct rig rig;
static struct client client;
static uint8_t buf[4096];
static struct err err;

#define SOON (loop_now() + 50 * NSEC_PER_MSEC)

/* ---- exports ------------------------------------------------------------ */

static void co_expect_add(const struct nbd_export_opts *o, const char *error)
{
    err = (struct err)ERR_INIT;
    assert_int_equal(co_nbd_export_add(rig.exports, o, &err), error == NULL);
    if (error)
        assert_string_equal(err.text, error);
}

static void expect_del(const char *id, enum nbd_export_del_mode mode, const char *error)
{
    err = (struct err)ERR_INIT;
    assert_int_equal(nbd_export_del(rig.exports, id, mode, &err), error == NULL);
    if (error)
        assert_string_equal(err.text, error);
}

static void count_exports(const struct nbd_export_info *info, void *arg)
{
    ++*(unsigned *)arg;
}

static unsigned n_exports(void)
{
    unsigned n = 0;

    nbd_exports_for_each(rig.exports, count_exports, &n);
    return n;
}

static void refused_exports_body(void)
{
    CLEANUP(free) char *name = xzalloc(LIMIT_NBD_STRING_BYTES + 2);

    co_rig_open(&rig, &(struct rig_opts){ .read_only = true });
    struct nbd_export_opts o = { .id = "e0", .node = rig.node };

    co_expect_add(&o, "Block export id 'e0' is already in use");
    o.id = "e1";
    o.name = "disk";
    co_expect_add(&o, "NBD server already has export named 'disk'");
    o.name = NULL;
    o.writable = true;
    co_expect_add(&o, "Cannot export read-only node as writable");
    o.writable = false;
    memset(name, 'n', LIMIT_NBD_STRING_BYTES + 1);
    o.name = name;
    assert_false(co_nbd_export_add(rig.exports, &o, &err));
    assert_non_null(strstr(err.text, "export name 'nnn"));
    o.name = "short";
    o.description = name;
    assert_false(co_nbd_export_add(rig.exports, &o, &err));
    assert_non_null(strstr(err.text, "description 'nnn"));
    assert_int_equal(n_exports(), 1);
    o.name = o.description = NULL;
    co_expect_add(&o, NULL);
    assert_int_equal(n_exports(), 2);
    co_rig_close(&rig);
}

static void what_cannot_be_exported_says_why(void **state)
{
    in_loop(refused_exports_body);
}

struct info_seen {
    unsigned n;
    struct nbd_export_info last;
    char name[32], node_name[32], description[32];
};

static void see_info(const struct nbd_export_info *info, void *arg)
{
    struct info_seen *s = arg;

    s->n++;
    s->last = *info;
    snprintf(s->name, sizeof(s->name), "%s", info->name);
    snprintf(s->node_name, sizeof(s->node_name), "%s", info->node_name);
    snprintf(s->description, sizeof(s->description), "%s", info->description);
}

static unsigned n_deleted;

static void on_deleted(const char *id, void *arg)
{
    assert_string_equal(id, arg);
    n_deleted++;
}

static void deleting_body(void)
{
    struct info_seen seen = { 0 };

    n_deleted = 0;
    co_rig_open(&rig, &(struct rig_opts){ 0 });
    nbd_exports_on_deleted(rig.exports, on_deleted, (void *)"e0");
    client = co_client_ready(&rig);
    expect_del("e1", NBD_EXPORT_DEL_SAFE, "Export 'e1' is not found");
    expect_del("e0", NBD_EXPORT_DEL_SAFE, "export 'e0' still in use");

    /* Its request is answered before the connection ends. */
    co_rig_hold(&rig, MEM_WRITE);
    co_write_request(&client, 1, 0, buf, 512);
    co_rig_wait_count(&rig, MEM_WRITE, 1);
    expect_del("e0", NBD_EXPORT_DEL_HARD, NULL);
    expect_del("e0", NBD_EXPORT_DEL_HARD, "Export 'e0' is already shutting down");
    nbd_exports_for_each(rig.exports, see_info, &seen);
    assert_int_equal(seen.n, 1);
    assert_true(seen.last.shutting_down);
    assert_int_equal(seen.last.connections, 1);
    assert_int_equal(seen.last.size, DISK_BYTES);
    assert_string_equal(seen.name, "disk");
    assert_string_equal(seen.node_name, "mem0");
    assert_string_equal(seen.description, "a disk in memory");
    assert_false(co_nbd_export_wait_gone(rig.exports, "e0", SOON));
    assert_int_equal(n_deleted, 0);
    co_rig_release(&rig, MEM_WRITE);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    co_expect_end(&client);
    assert_true(co_nbd_export_wait_gone(rig.exports, "e0", DEADLINE_NEVER));
    assert_int_equal(n_exports(), 0);
    client_close(&client);
    while (!n_deleted)
        co_yield();
    co_rig_close(&rig);
}

static void deleting_waits_for_requests_and_tells(void **state)
{
    in_loop(deleting_body);
}

/* Prepared it has its id and name, and nobody sees it; dropped it never was. */
static void prepared_body(void)
{
    struct option_reply reply;
    uint8_t data[64];
    struct nbd_export *e;

    n_deleted = 0;
    co_rig_open(&rig, &(struct rig_opts){ 0 });
    nbd_exports_on_deleted(rig.exports, on_deleted, (void *)"e0");
    struct nbd_export_opts o = { .id = "e1", .node = rig.node, .name = "later" };

    e = co_nbd_export_prepare(rig.exports, &o, &err);
    assert_non_null(e);
    assert_int_equal(n_exports(), 1);
    expect_del("e1", NBD_EXPORT_DEL_HARD, "Export 'e1' is not found");
    co_expect_add(&o, "Block export id 'e1' is already in use");
    o.id = "e2";
    co_expect_add(&o, "NBD server already has export named 'later'");
    o.id = "e1";
    client = co_client_connect(&rig);
    co_greet(&client);
    co_option(&client, NBD_OPT_INFO, data, put_go(data, "later"));
    co_option_reply(&client, NBD_OPT_INFO, &reply);
    assert_int_equal(reply.type, NBD_REP_ERR_UNKNOWN);
    client_close(&client);
    co_nbd_export_drop(e);
    assert_int_equal(n_deleted, 0);

    e = co_nbd_export_prepare(rig.exports, &o, &err);
    assert_non_null(e);
    /* Who closes the table waits for what becomes of it. */
    assert_false(co_nbd_exports_close(rig.exports, SOON));
    assert_int_equal(n_exports(), 0);
    nbd_export_publish(e);
    assert_int_equal(n_exports(), 1);
    nbd_exports_on_deleted(rig.exports, on_deleted, (void *)"e1");
    assert_true(co_nbd_exports_close(rig.exports, DEADLINE_NEVER));
    while (n_deleted < 2)
        co_yield();
    co_rig_close(&rig);
}

static void a_prepared_export_is_seen_by_nobody(void **state)
{
    in_loop(prepared_body);
}

static void name_reuse_body(void)
{
    struct client second;

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    struct nbd_export_opts o = { .id = "e1", .node = rig.node, .name = "disk", .writable = true };

    client = co_client_ready(&rig);
    co_rig_hold(&rig, MEM_WRITE);
    co_write_request(&client, 1, 0, buf, 512);
    co_rig_wait_count(&rig, MEM_WRITE, 1);
    expect_del("e0", NBD_EXPORT_DEL_HARD, NULL);
    co_expect_add(&o, NULL);
    second = co_client_ready(&rig);
    co_request(&second, NBD_CMD_READ, 0, 1, 0, 512);
    assert_int_equal(co_simple_reply(&second, 1), 0);
    co_rig_release(&rig, MEM_WRITE);
    assert_true(co_nbd_export_wait_gone(rig.exports, "e0", DEADLINE_NEVER));
    client_close(&client);
    client_close(&second);
    co_rig_close(&rig);
}

static void a_name_is_free_while_its_export_ends(void **state)
{
    in_loop(name_reuse_body);
}

/* Nobody can choose an export any more that is going, however far it came. */
static void gone_while_negotiating_body(void)
{
    struct option_reply reply;
    uint8_t data[64];

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    client = co_client_connect(&rig);
    co_greet(&client);
    co_option(&client, NBD_OPT_INFO, data, put_go(data, "disk"));
    do {
        co_option_reply(&client, NBD_OPT_INFO, &reply);
    } while (reply.type == NBD_REP_INFO);
    assert_int_equal(reply.type, NBD_REP_ACK);
    expect_del("e0", NBD_EXPORT_DEL_SAFE, NULL);
    co_option(&client, NBD_OPT_GO, data, put_go(data, "disk"));
    co_option_reply(&client, NBD_OPT_GO, &reply);
    assert_int_equal(reply.type, NBD_REP_ERR_UNKNOWN);
    client_close(&client);
    co_rig_close(&rig);
}

static void an_export_that_is_going_is_unknown(void **state)
{
    in_loop(gone_while_negotiating_body);
}

/* ---- stopping ----------------------------------------------------------- */

static void co_stop_server(void *arg)
{
    co_nbd_server_stop(MOVE(rig.server), DEADLINE_NEVER);
}

static void stop_with_requests_body(void)
{
    struct crew crew = { 0 };

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    client = co_client_ready(&rig);
    co_rig_hold(&rig, MEM_WRITE);
    for (uint64_t i = 0; i < 4; i++)
        co_write_request(&client, i, 0, buf, 512);
    co_rig_wait_count(&rig, MEM_WRITE, 4);
    crew_start(&crew, co_stop_server, NULL);
    while (access(rig.path, F_OK) == 0)
        co_yield();
    co_rig_release(&rig, MEM_WRITE);
    for (uint64_t i = 0; i < 4; i++)
        assert_int_equal(co_simple_reply(&client, i), 0);
    co_expect_end(&client);
    co_crew_wait(&crew);
    client_close(&client);
    co_rig_close(&rig);
}

static void stopping_answers_what_was_asked(void **state)
{
    in_loop(stop_with_requests_body);
}

/* However long the disk takes: patience is for the disk, not for the client. */
static void stop_slow_disk_body(void)
{
    struct crew crew = { 0 };

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    client = co_client_ready(&rig);
    co_rig_hold(&rig, MEM_WRITE);
    co_write_request(&client, 1, 0, buf, 512);
    co_rig_wait_count(&rig, MEM_WRITE, 1);
    crew_start(&crew, co_stop_server, NULL);
    co_sleep(3500 * NSEC_PER_MSEC);
    co_rig_release(&rig, MEM_WRITE);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    co_expect_end(&client);
    co_crew_wait(&crew);
    client_close(&client);
    co_rig_close(&rig);
}

static void stopping_waits_for_a_slow_disk(void **state)
{
    in_loop(stop_slow_disk_body);
}

static void stop_unwilling_body(void)
{
    struct client negotiating;
    uint64_t start;

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    negotiating = co_client_connect(&rig);
    co_greet(&negotiating);
    client = co_client_ready(&rig);
    for (uint64_t i = 0; i < 128; i++)
        co_request(&client, NBD_CMD_READ, 0, i, 0, 65536);
    co_rig_wait_count(&rig, MEM_READ, 100);
    start = loop_now();
    co_rig_close(&rig);
    assert_true(loop_now() - start < 20 * NSEC_PER_SEC);
    co_expect_end(&negotiating);
    client_close(&negotiating);
    client_close(&client);
}

static void stopping_does_not_wait_for_those_who_do_not_take(void **state)
{
    in_loop(stop_unwilling_body);
}

static void stop_hung_body(void)
{
    co_rig_open(&rig, &(struct rig_opts){ 0 });
    client = co_client_ready(&rig);
    co_rig_hold(&rig, MEM_READ);
    co_request(&client, NBD_CMD_READ, 0, 1, 0, 512);
    co_rig_wait_count(&rig, MEM_READ, 1);
    co_nbd_server_stop(MOVE(rig.server), SOON);
    assert_false(co_nbd_exports_close(rig.exports, SOON));
    assert_int_equal(n_exports(), 1);
    co_rig_release(&rig, MEM_READ);
    assert_true(co_nbd_exports_close(rig.exports, DEADLINE_NEVER));
    client_close(&client);
    co_rig_close(&rig);
}

static void a_hung_disk_does_not_hold_up_stopping(void **state)
{
    in_loop(stop_hung_body);
}

/* ---- addresses ---------------------------------------------------------- */

static struct nbd_server *co_start_at(const struct nbd_address *a)
{
    struct nbd_server_opts o = { .address = *a, .exports = rig.exports };

    err = (struct err)ERR_INIT;
    return co_nbd_server_start(&o, &err);
}

static void co_expect_refused(const struct nbd_address *a, const char *text)
{
    assert_null(co_start_at(a));
    if (!strstr(err.text, text))
        fail_msg("'%s' is not in '%s'", text, err.text);
}

static void socket_file_body(void)
{
    CLEANUP(free) char *uri = NULL;
    struct nbd_address a = { .kind = NBD_ADDRESS_UNIX };
    char stale[80];
    struct stat st;

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    uri = nbd_server_uri(rig.server, "a b/ü?");
    assert_non_null(strstr(uri, "nbd+unix:///a%20b/%C3%BC%3F?socket=/tmp/stillpoint-nbd-"));
    a.path = rig.path;
    co_expect_refused(&a, "Address already in use");
    assert_int_equal(stat(rig.path, &st), 0);      /* the live one is as it was */

    /* Left over from somebody who died. */
    snprintf(stale, sizeof(stale), "%s-stale", rig.path);
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    memcpy(sun.sun_path, stale, strlen(stale));
    assert_int_equal(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
    close(fd);
    a.path = stale;
    struct nbd_server *s = co_start_at(&a);

    assert_non_null(s);

    /* Somebody else's socket in our place is left alone. */
    assert_int_equal(unlink(stale), 0);
    fd = open(stale, O_CREAT | O_WRONLY, 0600);
    close(fd);
    co_nbd_server_stop(s, DEADLINE_NEVER);
    assert_int_equal(stat(stale, &st), 0);
    co_expect_refused(&a, "Address already in use");   /* a plain file is not replaced */
    unlink(stale);
    co_rig_close(&rig);
}

static void socket_files_are_replaced_only_when_stale(void **state)
{
    in_loop(socket_file_body);
}

static void bad_addresses_body(void)
{
    char path[200];

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    memset(path, 'p', sizeof(path) - 1);
    path[sizeof(path) - 1] = 0;
    co_expect_refused(&(struct nbd_address){ .kind = NBD_ADDRESS_UNIX, .path = path },
                      "is too long");
    co_expect_refused(&(struct nbd_address){ .kind = NBD_ADDRESS_UNIX, .path = "" }, "empty");
    co_expect_refused(&(struct nbd_address){ .kind = NBD_ADDRESS_UNIX, .path = "/nowhere/s" },
                      "No such file or directory");
    co_expect_refused(&(struct nbd_address){ .kind = NBD_ADDRESS_INET, .host = "127.0.0.1",
                                             .port = "no-such-service" }, "resolution failed");
    co_expect_refused(&(struct nbd_address){ .kind = NBD_ADDRESS_INET, .host = "127.0.0.1" },
                      "port not specified");
    co_expect_refused(&(struct nbd_address){ .kind = NBD_ADDRESS_FD, .fd = 0 },
                      "not a listening stream socket");
    co_expect_refused(&(struct nbd_address){ .kind = NBD_ADDRESS_FD, .fd = 9999 },
                      "not a listening stream socket");
    co_rig_close(&rig);
}

static void addresses_that_cannot_be_say_why(void **state)
{
    in_loop(bad_addresses_body);
}

/* Greeting and farewell over TCP, on the port that the server says. */
static void co_expect_served(uint16_t port)
{
    struct sockaddr_in in = {
        .sin_family = AF_INET, .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(co_connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
    client = (struct client){ stream_new(fd, 4096) };
    co_greet(&client);
    co_option(&client, NBD_OPT_ABORT, NULL, 0);
    co_expect_option_reply(&client, NBD_OPT_ABORT, NBD_REP_ACK);
    client_close(&client);
}

static void tcp_body(void)
{
    static const char *const hosts[] = { "127.0.0.1", "0.0.0.0", NULL, "localhost" };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct nbd_server *s;
    char port[8];

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
        struct nbd_address a = { .kind = NBD_ADDRESS_INET, .host = hosts[i], .port = "0" };
        char want[64];

        s = co_start_at(&a);
        assert_non_null(s);
        assert_int_not_equal(nbd_server_port(s), 0);
        co_expect_served(nbd_server_port(s));
        CLEANUP(free) char *uri = nbd_server_uri(s, "x");

        snprintf(want, sizeof(want), "nbd://%s:%u/x", i ? "localhost" : "127.0.0.1",
                 nbd_server_port(s));
        assert_string_equal(uri, want);
        snprintf(port, sizeof(port), "%u", nbd_server_port(s));
        a.port = port;
        co_expect_refused(&a, "Address already in use");
        co_nbd_server_stop(s, DEADLINE_NEVER);
    }
    /* One that somebody else opened. */
    assert_int_equal(listen(fd, 5), 0);
    s = co_start_at(&(struct nbd_address){ .kind = NBD_ADDRESS_FD, .fd = fd });
    assert_non_null(s);
    co_expect_served(nbd_server_port(s));
    co_nbd_server_stop(s, DEADLINE_NEVER);
    co_rig_close(&rig);
}

static void tcp_is_served_on_every_address(void **state)
{
    in_loop(tcp_body);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_exported_says_why),
        cmocka_unit_test(deleting_waits_for_requests_and_tells),
        cmocka_unit_test(a_prepared_export_is_seen_by_nobody),
        cmocka_unit_test(a_name_is_free_while_its_export_ends),
        cmocka_unit_test(an_export_that_is_going_is_unknown),
        cmocka_unit_test(stopping_answers_what_was_asked),
        cmocka_unit_test(stopping_waits_for_a_slow_disk),
        cmocka_unit_test(stopping_does_not_wait_for_those_who_do_not_take),
        cmocka_unit_test(a_hung_disk_does_not_hold_up_stopping),
        cmocka_unit_test(socket_files_are_replaced_only_when_stale),
        cmocka_unit_test(addresses_that_cannot_be_say_why),
        cmocka_unit_test(tcp_is_served_on_every_address),
    };

    return nbd_rig_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests));
}
