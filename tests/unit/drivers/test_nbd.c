/* SPDX-License-Identifier: Apache-2.0
 *
 * Driver nbd against nbdkit and qemu-nbd while all goes well, and what it refuses.
 * Lost and hanging servers are in test_nbd_link.c.
 */
#include "nbd_servers.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SIZE (4 * MiB)

static void co_random_model(struct node *n)
{
    CLEANUP(free) unsigned char *model = xzalloc(SIZE), *buf = xmalloc(SIZE);
    uint64_t rnd = 9;

    assert_int_equal(n->size, SIZE);
    for (int i = 0; i < 300; i++) {
        uint64_t off = test_random(&rnd, SIZE - 1);
        uint64_t len = 1 + test_random(&rnd, MIN(SIZE - off, 200 * KiB));
        struct iovec two[2] = {
            { model + off, len / 3 },
            { model + off + len / 3, len - len / 3 },
        };
        unsigned flags = test_random(&rnd, 4) ? 0 : REQ_FUA;

        switch (test_random(&rnd, 5)) {
        case 0:
            flags |= test_random(&rnd, 2) ? REQ_MAY_UNMAP : 0;
            assert_int_equal(co_node_write_zeroes(n, off, len, flags), 0);
            memset(model + off, 0, len);
            break;
        case 1:
            two[0].iov_base = buf;
            two[1].iov_base = buf + len / 3;
            assert_int_equal(co_node_preadv(n, off, len, two, 2, 0), 0);
            assert_memory_equal(buf, model + off, len);
            break;
        case 2:
            assert_int_equal(co_node_pread(n, off, len, buf, 0), 0);
            assert_memory_equal(buf, model + off, len);
            break;
        case 3:
            memset(model + off, 1 + i % 255, len);
            assert_int_equal(co_node_pwritev(n, off, len, two, 2, flags), 0);
            break;
        default:
            memset(model + off, 1 + i % 255, len);
            assert_int_equal(co_node_pwrite(n, off, len, model + off, flags), 0);
            break;
        }
    }
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(co_node_pread(n, 0, SIZE, buf, 0), 0);
    assert_memory_equal(buf, model, SIZE);
}

CO_TEST(reads_from_nbdkit_give_what_was_written)
{
    struct server s = start_nbdkit(test_path("a"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, "");

    co_random_model(n);
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(reads_from_qemu_nbd_give_what_was_written)
{
    struct server s;
    struct node *n;

    make_file(test_path("disk"), SIZE);
    s = start_qemu_nbd(test_path("b"), ARGS("-f", "raw", test_path("disk")));
    n = co_open_nbd(&s, "");
    co_random_model(n);
    co_node_unref(n);
    kill_server(&s);
}

/* A server that takes whole blocks only, and no more than so many bytes. */
CO_TEST(block_size_limits_of_the_server_are_kept)
{
    struct server s = start_nbdkit(test_path("c"),
                                   ARGS("--filter=blocksize-policy", "memory", "4M",
                                        "blocksize-minimum=4096", "blocksize-preferred=65536",
                                        "blocksize-maximum=131072",
                                        "blocksize-error-policy=error"));
    struct node *n = co_open_nbd(&s, "");
    struct node_info info;

    node_get_info(n, &info);
    assert_int_equal(info.request_align, 4096);
    assert_int_equal(info.optimal_io, 65536);
    assert_int_equal(info.max_transfer, 131072);
    co_random_model(n);
    co_node_unref(n);
    kill_server(&s);
}

/* The last block reaches beyond the end. */
CO_TEST(an_export_need_not_end_with_a_whole_block)
{
    struct server s = start_nbdkit(test_path("odd"),
                                   ARGS("--filter=blocksize-policy", "memory", "1048876",
                                        "blocksize-minimum=512", "blocksize-preferred=4096",
                                        "blocksize-maximum=1M"));
    struct node *n = co_open_nbd(&s, "");

    assert_int_equal(n->size, MiB + 300);
    assert_int_equal(n->limits.request_align, 512);
    co_fill(n, 0, MiB + 300, 6);
    co_expect(n, 0, MiB + 300, 6);
    co_fill(n, MiB + 299, 1, 7);
    co_expect(n, MiB + 100, 199, 6);
    co_expect(n, MiB + 299, 1, 7);
    assert_int_equal(co_node_write_zeroes(n, MiB - 100, 400, REQ_MAY_UNMAP), 0);
    co_expect(n, MiB - 100, 400, 0);
    assert_int_equal(co_node_discard(n, 0, MiB + 300), 0);
    for (uint64_t off = 0; off < n->size;)
        off += co_status(n, off, n->size - off).len;
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(status_is_that_of_the_server)
{
    CLEANUP(free) unsigned char *data = memset(xmalloc(64 * KiB), 1, 64 * KiB);
    const char *path = test_path("sparse");
    enum { UNIT = 64 * 1024, UNITS = 256 };
    bool is_data[UNITS];
    uint64_t rnd = 4;
    struct server s;
    struct node *n;

    make_file(path, UNIT * UNITS);
    for (int i = 0; i < UNITS; i++) {
        is_data[i] = test_random(&rnd, 2);
        if (is_data[i])
            file_write(path, (uint64_t)i * UNIT, data, UNIT);
    }
    s = start_qemu_nbd(test_path("d"), ARGS("--discard=unmap", "-f", "raw", path));
    n = co_open_nbd(&s, "");
    for (uint64_t off = 0; off < n->size;) {
        struct block_status st = co_status(n, off, n->size - off);

        assert_int_equal(st.flags, (is_data[off / UNIT] ? STATUS_DATA : STATUS_ZERO) |
                                   STATUS_ALLOCATED | STATUS_OFFSET);
        for (uint64_t i = off / UNIT; i < div_round_up(off + st.len, UNIT); i++)
            assert_int_equal(is_data[i], is_data[off / UNIT]);
        off += st.len;
    }
    /* What this node does it knows of. */
    assert_int_equal(co_node_write_zeroes(n, 0, n->size, REQ_MAY_UNMAP), 0);
    assert_true(co_status(n, 0, n->size).flags & STATUS_ZERO);
    co_fill(n, UNIT, UNIT, 1);
    assert_true(co_status(n, UNIT, UNIT).flags & STATUS_DATA);
    assert_int_equal(co_node_discard(n, UNIT, UNIT), 0);
    assert_true(co_status(n, UNIT, UNIT).flags & STATUS_ZERO);
    co_node_unref(n);
    kill_server(&s);
}

/* A server that reports an extent for every 4 KiB of 64 MiB. */
CO_TEST(a_fragmented_disk_is_told_piece_by_piece)
{
    struct server s = start_nbdkit(test_path("frag"), ARGS("eval", "get_size=echo 64M",
        "pread=dd if=/dev/zero count=$3 iflag=count_bytes", "can_extents=exit 0",
        "extents=i=$4; end=$(($4 + $3)); [ $end -le $((i + 1048576)) ] || end=$((i + 1048576)); "
        "while [ $i -lt $end ]; do echo $i 4096; echo $((i + 4096)) 4096 hole,zero; "
        "i=$((i + 8192)); done"));
    struct node *n = co_open_nbd(&s, ", 'read-only': true");

    for (uint64_t off = 0; off < 2 * MiB; off += 4096) {
        struct block_status st = co_status(n, off, n->size - off);

        assert_int_equal(st.len, 4096);
        assert_int_equal(!!(st.flags & STATUS_ZERO), off / 4096 % 2);
    }
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(a_server_without_status_zeroing_and_trimming_still_serves)
{
    struct server s = start_nbdkit(test_path("e"),
                                   ARGS("--no-sr", "--filter=nozero", "--filter=nofilter",
                                        "memory", "4M"));
    struct node *n = co_open_nbd(&s, "");

    assert_true(co_status(n, 0, SIZE).flags & STATUS_DATA);
    assert_int_equal(co_node_write_zeroes(n, 0, SIZE, REQ_NO_FALLBACK), -ENOTSUP);
    co_random_model(n);
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(a_read_only_export_is_refused_for_writing_and_taken_for_reading)
{
    struct server s = start_nbdkit(test_path("f"), ARGS("-r", "memory", "4M"));
    struct node *n = co_open_nbd(&s, ", 'read-only': true");
    unsigned char byte = 0;

    co_expect(n, 0, 4096, 0);
    assert_int_equal(co_node_pwrite(n, 0, 1, &byte, 0), -EPERM);
    co_node_unref(n);
    co_open_refused("read-only", "{'driver': 'nbd', 'server': {'type': 'unix', 'path': '%s'}}",
                    s.socket);
    n = co_open_nbd(&s, ", 'auto-read-only': true");
    assert_true(node_read_only(n));
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(errors_of_the_server_are_passed_on_and_the_connection_stays)
{
    const char *trigger = test_path("trigger");
    struct server s = start_nbdkit(test_path("g"),
                                   ARGS("--filter=error", "memory", "4M", "error=ENOSPC",
                                        "error-rate=100%", test_text("error-file=%s", trigger)));
    struct node *n = co_open_nbd(&s, "");
    unsigned char byte = 1;

    co_fill(n, 0, 4096, 1);
    make_file(trigger, 1);
    assert_int_equal(co_node_pwrite(n, 0, 1, &byte, 0), -ENOSPC);
    assert_int_equal(co_node_pread(n, 0, 1, &byte, 0), -ENOSPC);
    assert_int_equal(co_node_write_zeroes(n, 0, 4096, 0), -ENOSPC);
    unlink(trigger);
    co_expect(n, 0, 4096, 1);
    co_node_unref(n);
    kill_server(&s);
}

struct busy {
    struct node *n;
    unsigned next;
};

static void co_busy_client(void *arg)
{
    struct busy *b = arg;
    unsigned me = b->next++;
    uint64_t off = me * 64 * KiB;

    for (unsigned i = 0; i < 20; i++) {
        co_fill(b->n, off, 64 * KiB, (unsigned char)(me + i));
        co_expect(b->n, off, 64 * KiB, (unsigned char)(me + i));
    }
}

CO_TEST(many_requests_at_once)
{
    struct server s = start_nbdkit(test_path("h"), ARGS("memory", "4M"));
    struct busy b = { .n = co_open_nbd(&s, "") };

    co_together(64, co_busy_client, &b);
    co_node_unref(b.n);
    kill_server(&s);
}

CO_TEST(a_large_request_is_cut)
{
    struct server s = start_nbdkit(test_path("i"), ARGS("memory", "80M"));
    struct node *n = co_open_nbd(&s, "");

    assert_int_equal(n->limits.max_transfer, 32 * MiB);
    co_fill(n, 0, 80 * MiB, 0x77);
    co_expect(n, 0, 80 * MiB, 0x77);
    assert_int_equal(co_node_write_zeroes(n, 1, 80 * MiB - 2, 0), 0);
    co_expect(n, 1, 80 * MiB - 2, 0);
    co_expect(n, 0, 1, 0x77);
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(an_image_name_may_be_a_uri)
{
    struct server s = start_nbdkit(test_path("j k"), ARGS("-e", "x/y", "memory", "4M"));
    CLEANUP(free) char *uri = xasprintf("nbd+unix:///x/y?socket=%s/j%%20k", test_dir());
    struct open_file_opts o = { .filename = uri };
    struct err err = ERR_INIT;
    struct node_info info;
    struct node *n = co_open_nbd(&s, ", 'export': 'x/y'"), *by_uri;

    by_uri = co_node_open_file(&o, &err);
    if (!by_uri)
        fail_msg("%s", err.text);
    assert_int_equal(by_uri->size, SIZE);
    node_get_info(by_uri, &info);
    assert_string_equal(info.filename, uri);
    assert_true(node_shares_storage(n, by_uri));
    co_node_unref(by_uri);
    co_node_unref(n);
    kill_server(&s);
}

/* A port that is free now. */
static uint16_t free_port(void)
{
    struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof(sin);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sin, &len), 0);
    close(fd);
    return ntohs(sin.sin_port);
}

/* "localhost" may be ::1 first, where nobody listens. */
CO_TEST(tcp_tries_each_address_of_a_name)
{
    uint16_t port = free_port();
    struct server s = start_nbdkit_tcp(port, ARGS("memory", "4M"));
    struct node *n;

    n = co_test_open("{'driver': 'nbd', 'open-timeout': 20, 'server': {'type': 'inet',"
                     " 'host': 'localhost', 'port': '%u', 'keep-alive': true}}", port);
    co_fill(n, 0, 4096, 4);
    co_expect(n, 0, 4096, 4);
    co_node_unref(n);
    n = co_test_open("{'driver': 'nbd', 'server': {'type': 'inet', 'host': '127.0.0.1',"
                     " 'numeric': true, 'ipv6': false, 'port': '%u'}}", port);
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(what_cannot_be_reached_or_is_not_known_is_refused)
{
    struct server s = start_nbdkit(test_path("l"), ARGS("-e", "known", "memory", "4M"));
    struct node *n = co_open_nbd(&s, ", 'export': 'known'");
    const char *unix_server = "'server': {'type': 'unix', 'path':";

    co_node_unref(n);
    kill_server(&s);
    s = start_qemu_nbd(test_path("m"), ARGS("-f", "raw", "-x", "known", test_path("disk")));
    n = co_open_nbd(&s, ", 'export': 'known'");
    co_open_refused("nknown", "{'driver': 'nbd', %s '%s'}, 'export': 'unknown'}", unix_server,
                    s.socket);
    co_node_unref(n);
    kill_server(&s);
    co_open_refused("Connection refused", "{'driver': 'nbd', %s '%s'}}", unix_server, s.socket);
    co_open_refused("No such file", "{'driver': 'nbd', %s '/nonexistent'}}", unix_server);
    co_open_refused("too long", "{'driver': 'nbd', %s '/%0120d'}}", unix_server, 1);
    co_open_refused("address resolution failed", "{'driver': 'nbd', 'server': {'type': 'inet',"
                    " 'host': 'no such host', 'port': '1'}}");
    co_open_refused("Connection refused", "{'driver': 'nbd', 'server': {'type': 'inet',"
                    " 'host': '127.0.0.1', 'port': '%u'}}", free_port());
    co_open_refused("at same time", "{'driver': 'nbd', 'server': {'type': 'inet', 'host': 'x',"
                    " 'port': '1', 'ipv4': false, 'ipv6': false}}");
    co_open_refused("tls-creds", "{'driver': 'nbd', %s '/x'}, 'tls-creds': 't'}", unix_server);
    co_open_refused("'server' is missing", "{'driver': 'nbd'}");
    co_open_refused("does not accept value 'vsock'", "{'driver': 'nbd', 'server': {'type':"
                    " 'vsock', 'cid': '1', 'port': '1'}}");
}

static void co_greet(void *arg)
{
    static const char text[] = "220 mail.example.org ESMTP ready\r\n";
    struct msghdr msg = { .msg_iov = &(struct iovec){ (void *)text, sizeof(text) },
                          .msg_iovlen = 1 };
    int *listener = arg, fd = co_accept(*listener);
    char byte;

    assert_true(fd >= 0);
    assert_int_equal(co_sendmsg(fd, &msg, 0), sizeof(text));
    (void)co_recv(fd, &byte, 1, 0);
    close(fd);
    close(*listener);
}

CO_TEST(a_server_of_something_else_is_refused)
{
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct crew crew = { 0 };

    snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", test_path("mail"));
    assert_int_equal(bind(listener, (struct sockaddr *)&sun, sizeof(sun)), 0);
    assert_int_equal(listen(listener, 1), 0);
    crew_start(&crew, co_greet, &listener);
    co_open_refused("Negotiation failed", "{'driver': 'nbd', 'open-timeout': 100, 'server':"
                    " {'type': 'unix', 'path': '%s'}}", sun.sun_path);
    co_crew_wait(&crew);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(reads_from_nbdkit_give_what_was_written),
    cmocka_unit_test(reads_from_qemu_nbd_give_what_was_written),
    cmocka_unit_test(block_size_limits_of_the_server_are_kept),
    cmocka_unit_test(an_export_need_not_end_with_a_whole_block),
    cmocka_unit_test(status_is_that_of_the_server),
    cmocka_unit_test(a_fragmented_disk_is_told_piece_by_piece),
    cmocka_unit_test(a_server_without_status_zeroing_and_trimming_still_serves),
    cmocka_unit_test(a_read_only_export_is_refused_for_writing_and_taken_for_reading),
    cmocka_unit_test(errors_of_the_server_are_passed_on_and_the_connection_stays),
    cmocka_unit_test(many_requests_at_once),
    cmocka_unit_test(a_large_request_is_cut),
    cmocka_unit_test(an_image_name_may_be_a_uri),
    cmocka_unit_test(tcp_tries_each_address_of_a_name),
    cmocka_unit_test(what_cannot_be_reached_or_is_not_known_is_refused),
    cmocka_unit_test(a_server_of_something_else_is_refused),
};

DRIVERS_TEST_MAIN(tests)
