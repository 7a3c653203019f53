/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections: greeting, order, events, and peers that misbehave. The test holds
 * the other end of a socket pair and works it from the same loop.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "loop/co_io.h"
#include "qmp_test.h"
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEADLINE (loop_now() + 60 * NSEC_PER_SEC)

static struct qmp_test t;
static unsigned closed;

static void count_closed(void *arg)
{
    closed++;
}

static int connect_monitor(bool pretty)
{
    struct qmp_monitor_opts o = { .pretty = pretty, .on_closed = count_closed };
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    o.fd = ends[0];
    qmp_monitor_start(t.qmp, &o);
    return ends[1];
}

static void co_say(int fd, const char *text)
{
    size_t left = strlen(text);

    while (left) {
        struct iovec iov = { (void *)text, left };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n = co_sendmsg(fd, &msg, MSG_NOSIGNAL);

        assert_true(n > 0);
        text += n;
        left -= (size_t)n;
    }
}

/* The next line; NULL at the end of the connection. free() it. */
static char *co_line(int fd)
{
    struct strbuf sb = STRBUF_INIT;
    struct co_poll p = { 0 };
    char buf[4096];

    while (sb.len == 0 || sb.text[sb.len - 1] != '\n') {
        assert_true(co_poll(&p, fd, POLLIN, DEADLINE));

        ssize_t n = recv(fd, buf, sizeof(buf), MSG_PEEK);

        if (n <= 0) {
            assert_int_equal(sb.len, 0);
            return NULL;
        }

        const char *end = memchr(buf, '\n', (size_t)n);

        n = end ? end + 1 - buf : n;
        assert_int_equal(recv(fd, buf, (size_t)n, 0), n);
        strbuf_addn(&sb, buf, (size_t)n);
    }
    return strbuf_steal(&sb);
}

static void co_expect_line(int fd, const char *start)
{
    CLEANUP(free) char *line = co_line(fd);

    assert_non_null(line);
    if (strncmp(line, start, strlen(start)) != 0)
        fail_msg("expected: %s\ncame: %s", start, line);
    assert_string_equal(line + strlen(line) - 2, "\r\n");
}

static int co_negotiated(void)
{
    int fd = connect_monitor(false);

    co_expect_line(fd, "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10");
    co_say(fd, "{'execute': 'qmp_capabilities'}");
    co_expect_line(fd, "{\"return\": {}}");
    return fd;
}

static void co_wait_closed(unsigned n)
{
    while (closed < n)
        co_sleep(NSEC_PER_MSEC);
}

static void begin(void)
{
    qmp_test_begin(&t);
    closed = 0;
}

static void co_order(void)
{
    begin();

    int fd = co_negotiated();

    co_say(fd, "{'execute':'query-version','id':1}{'execute':'nope','id':2}\nrubbish {'exec");
    co_expect_line(fd, "{\"return\": {\"qemu\"");
    co_expect_line(fd, "{\"error\": {\"class\": \"CommandNotFound\"");
    co_expect_line(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, ");
    co_say(fd, "ute':'query-commands'}");
    co_expect_line(fd, "{\"return\": [{\"name\": \"qmp_capabilities\"}");
    close(fd);
    co_wait_closed(1);
    co_qmp_test_end(&t);
}

static void commands_are_answered_in_their_order(void **state)
{
    in_loop(co_order);
}

static void co_events(void)
{
    begin();

    int a = co_negotiated(), b = co_negotiated(), silent = connect_monitor(false);

    co_expect_line(silent, "{\"QMP\"");
    qmp_emit(t.qmp, "JOB_STATUS_CHANGE", json_pack("{s:s}", "id", "j"));
    co_expect_line(a, "{\"timestamp\": {\"seconds\": ");
    co_expect_line(b, "{\"timestamp\": {\"seconds\": ");
    /* One that has not negotiated gets nothing but answers. */
    co_say(silent, "{'execute':'query-version'}");
    co_expect_line(silent, "{\"error\": {\"class\": \"CommandNotFound\"");
    co_qmp_test_end(&t);
    co_expect_line(a, "{\"timestamp\": ");
    assert_null(co_line(a));
    assert_null(co_line(silent));
    assert_int_equal(closed, 3);
    close(a);
    close(b);
    close(silent);
}

static void events_go_to_everybody_who_has_negotiated(void **state)
{
    in_loop(co_events);
}

static void co_half_closed(void)
{
    begin();

    int fd = co_negotiated();

    co_say(fd, "{'execute':'query-version'}");
    shutdown(fd, SHUT_WR);
    co_expect_line(fd, "{\"return\"");
    assert_null(co_line(fd));
    close(fd);
    co_wait_closed(1);
    co_qmp_test_end(&t);
}

static void what_was_asked_before_the_end_is_answered(void **state)
{
    in_loop(co_half_closed);
}

static void co_stalled(void)
{
    CLEANUP(free) char *text = xmalloc(64 * KiB);

    begin();
    memset(text, 'x', 64 * KiB - 1);
    text[64 * KiB - 1] = '\0';

    int stalled = co_negotiated(), good = co_negotiated();
    unsigned sent = 0;

    while (!closed) {
        qmp_emit(t.qmp, "SHUTDOWN", json_pack("{s:s}", "text", text));
        sent++;
        co_expect_line(good, "{\"timestamp\": ");
        assert_true(sent <= 2 * LIMIT_QMP_OUTPUT / (64 * KiB));
    }
    assert_true(sent >= LIMIT_QMP_OUTPUT / (64 * KiB));
    co_say(good, "{'execute':'query-version'}");
    co_expect_line(good, "{\"return\"");
    close(stalled);
    close(good);
    co_wait_closed(2);
    co_qmp_test_end(&t);
}

static void a_peer_that_does_not_read_is_dropped_and_others_go_on(void **state)
{
    in_loop(co_stalled);
}

/* Whoever asks without reading is not read from any more: nothing piles up. */
static void co_asks_without_reading(void)
{
    begin();

    int fd = co_negotiated(), other = co_negotiated();
    struct co_poll p = { 0 };
    uint64_t sent = 0;

    while (co_poll(&p, fd, POLLOUT, loop_now() + 200 * NSEC_PER_MSEC)) {
        static const char question[] = "{'execute':'query-qmp-schema'}\n";
        ssize_t n = send(fd, question, strlen(question), MSG_DONTWAIT);

        assert_true(n > 0);
        sent += (uint64_t)n;
        assert_true(sent < 16 * MiB);
    }
    assert_int_equal(closed, 0);
    co_say(other, "{'execute':'query-version'}");
    co_expect_line(other, "{\"return\"");
    close(fd);
    close(other);
    co_wait_closed(2);
    co_qmp_test_end(&t);
}

static void a_peer_that_only_asks_is_made_to_wait(void **state)
{
    in_loop(co_asks_without_reading);
}

static void co_long_message(void)
{
    CLEANUP(free) char *text = xmalloc(64 * KiB + 1);

    begin();
    memset(text, 'x', 64 * KiB);
    text[64 * KiB] = '\0';

    int fd = co_negotiated();

    co_say(fd, "{'execute': '");
    for (uint64_t sent = 0; sent < LIMIT_QMP_INPUT - 64 * KiB; sent += 64 * KiB)
        co_say(fd, text);
    (void)send(fd, text, 64 * KiB, MSG_NOSIGNAL);
    co_expect_line(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, a "
                       "message may have");
    /* With bytes of ours unread the end may come as an error. */
    close(fd);
    co_wait_closed(1);
    co_qmp_test_end(&t);
}

static void a_message_without_end_ends_the_connection(void **state)
{
    in_loop(co_long_message);
}

static void co_too_many(void)
{
    int fds[LIMIT_QMP_MONITORS];

    begin();
    for (unsigned i = 0; i < LIMIT_QMP_MONITORS; i++)
        fds[i] = connect_monitor(false);

    int refused = connect_monitor(false);

    assert_null(co_line(refused));
    assert_int_equal(closed, 1);
    close(refused);
    for (unsigned i = 0; i < LIMIT_QMP_MONITORS; i++) {
        co_expect_line(fds[i], "{\"QMP\"");
        close(fds[i]);
    }
    co_wait_closed(LIMIT_QMP_MONITORS + 1);
    close(co_negotiated());
    co_wait_closed(LIMIT_QMP_MONITORS + 2);
    co_qmp_test_end(&t);
}

static void monitors_are_bounded_in_number(void **state)
{
    in_loop(co_too_many);
}

static void co_pretty(void)
{
    begin();

    int fd = connect_monitor(true);
    CLEANUP(free) char *first = co_line(fd), *second = co_line(fd);

    assert_string_equal(first, "{\n");
    assert_string_equal(second, "    \"QMP\": {\n");
    close(fd);
    co_wait_closed(1);
    co_qmp_test_end(&t);
}

static void pretty_monitors_indent(void **state)
{
    in_loop(co_pretty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_are_answered_in_their_order),
        cmocka_unit_test(events_go_to_everybody_who_has_negotiated),
        cmocka_unit_test(what_was_asked_before_the_end_is_answered),
        cmocka_unit_test(a_peer_that_does_not_read_is_dropped_and_others_go_on),
        cmocka_unit_test(a_peer_that_only_asks_is_made_to_wait),
        cmocka_unit_test(a_message_without_end_ends_the_connection),
        cmocka_unit_test(monitors_are_bounded_in_number),
        cmocka_unit_test(pretty_monitors_indent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
