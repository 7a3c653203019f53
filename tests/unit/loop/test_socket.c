/* SPDX-License-Identifier: Apache-2.0
 *
 * Sockets below the streams: accept, connect, receive, send, and poll with its
 * deadline and its wake-up.
 */
#include "loop_test.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>

static struct gate gate;

/* --- Accept and connect --- */

/* A listener on a port of the kernel's choice, or on an abstract Unix name of
 * the kernel's choice. */
static int listen_on(int family, int backlog, struct sockaddr_storage *ret_addr,
                     socklen_t *ret_len)
{
    struct sockaddr_in in = { .sin_family = AF_INET,
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    sa_family_t un = AF_UNIX;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    if (family == AF_INET)
        assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
    else
        assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
    assert_int_equal(listen(fd, backlog), 0);
    *ret_len = sizeof(*ret_addr);
    assert_int_equal(getsockname(fd, (struct sockaddr *)ret_addr, ret_len), 0);
    return fd;
}

static int accepted[2];

static void accept_two(void *arg)
{
    accepted[0] = co_accept(*(int *)arg);
    accepted[1] = co_accept(*(int *)arg);
    gate_pass(&gate);
}

static void accept_connect_and_the_end_of_accept(int family)
{
    struct sockaddr_storage addr;
    socklen_t len;
    int listener = listen_on(family, 4, &addr, &len);
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char c = 'q';

    gate_init(&gate, 1);
    co_start(accept_two, &listener);
    co_yield();
    assert_int_equal(co_connect(fd, (struct sockaddr *)&addr, len), 0);
    co_sleep(2 * NSEC_PER_MSEC);      /* until the second accept waits */
    assert_int_equal(gate.left, 1);
    shutdown(listener, SHUT_RDWR);
    co_gate_wait(&gate);
    assert_true(accepted[0] >= 0);
    assert_int_equal(accepted[1], -EINVAL);
    assert_true(fcntl(accepted[0], F_GETFD) & FD_CLOEXEC);

    struct iovec iov = { &c, 1 };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    assert_int_equal(co_sendmsg(fd, &msg, 0), 1);
    c = 0;
    assert_int_equal(co_recv(accepted[0], &c, 1, 0), 1);
    assert_int_equal(c, 'q');
    close(accepted[0]);
    assert_int_equal(co_recv(fd, &c, 1, 0), 0);
    close(fd);
    close(listener);
}

static void accept_connect_and_the_end_of_accept_body(void)
{
    accept_connect_and_the_end_of_accept(AF_UNIX);
    accept_connect_and_the_end_of_accept(AF_INET);
}

static void connections_are_made_and_shutdown_ends_accept(void **state)
{
    in_loop(accept_connect_and_the_end_of_accept_body);
}

static void a_refused_connection_says_so_body(void)
{
    struct sockaddr_storage addr;
    socklen_t len;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    close(listen_on(AF_INET, 1, &addr, &len));
    assert_int_equal(co_connect(fd, (struct sockaddr *)&addr, len), -ECONNREFUSED);
    close(fd);

    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    close(listen_on(AF_UNIX, 1, &addr, &len));
    assert_int_equal(co_connect(fd, (struct sockaddr *)&addr, len), -ECONNREFUSED);
    close(fd);
    assert_int_equal(co_connect(-1, (struct sockaddr *)&addr, len), -EBADF);
    assert_int_equal(co_accept(-1), -EBADF);
}

static void a_refused_connection_says_so(void **state)
{
    in_loop(a_refused_connection_says_so_body);
}

static void accept_later(void *arg)
{
    co_sleep(15 * NSEC_PER_MSEC);
    for (int i = 0; i < 2; i++)
        close(co_accept(*(int *)arg));
    gate_pass(&gate);
}

static void a_full_unix_backlog_is_waited_for_body(void)
{
    struct sockaddr_storage addr;
    socklen_t len;
    int listener = listen_on(AF_UNIX, 0, &addr, &len), fd[2];

    gate_init(&gate, 1);
    co_start(accept_later, &listener);
    for (int i = 0; i < 2; i++) {
        fd[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(co_connect(fd[i], (struct sockaddr *)&addr, len), 0);
    }
    co_gate_wait(&gate);
    close(fd[0]);
    close(fd[1]);
    close(listener);
}

static void a_full_unix_backlog_is_waited_for(void **state)
{
    in_loop(a_full_unix_backlog_is_waited_for_body);
}

/* --- Receive and send --- */

static void send_later(void *arg)
{
    co_sleep(2 * NSEC_PER_MSEC);
    assert_int_equal(send(*(int *)arg, "late", 4, 0), 4);
    gate_pass(&gate);
}

static void receive_waits(bool nonblocking)
{
    int fds[2];
    char buf[16];

    gate_init(&gate, 1);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0, fds),
                     0);
    assert_int_equal(co_recv(fds[0], buf, sizeof(buf), MSG_DONTWAIT), -EAGAIN);
    co_start(send_later, &fds[1]);
    assert_int_equal(co_recv(fds[0], buf, sizeof(buf), 0), 4);
    assert_memory_equal(buf, "late", 4);
    co_gate_wait(&gate);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(co_recv(-1, buf, 1, 0), -EBADF);
}

static void receive_waits_body(void)
{
    receive_waits(false);
    receive_waits(true);
}

static void receive_waits_on_any_socket(void **state)
{
    in_loop(receive_waits_body);
}

static void drain(void *arg)
{
    static char buf[65536];
    int64_t left = 1 << 20;

    co_sleep(2 * NSEC_PER_MSEC);
    while (left > 0) {
        ssize_t n = co_recv(*(int *)arg, buf, sizeof(buf), 0);

        assert_true(n > 0);
        left -= n;
    }
    assert_int_equal(left, 0);
    gate_pass(&gate);
}

static void send_waits_for_room_body(void)
{
    static char block[1 << 20];
    size_t sent = 0;
    int fds[2];

    gate_init(&gate, 1);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    co_start(drain, &fds[1]);
    while (sent < sizeof(block)) {
        struct iovec iov = { block + sent, sizeof(block) - sent };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n = co_sendmsg(fds[0], &msg, 0);

        assert_true(n > 0);
        sent += (size_t)n;
    }
    co_gate_wait(&gate);
    close(fds[0]);
    close(fds[1]);
}

static void send_waits_for_room(void **state)
{
    in_loop(send_waits_for_room_body);
}

/* --- Poll --- */

static void poll_sees_events_and_deadlines_body(void)
{
    struct co_poll p = { 0 };
    int fd = eventfd(0, EFD_CLOEXEC), file = test_tmpfile();
    uint64_t deadline = loop_now() + 3 * NSEC_PER_MSEC;

    assert_int_equal(co_poll(&p, fd, POLLIN, deadline), 0);
    assert_true(loop_now() >= deadline);
    assert_int_equal(co_poll(&p, fd, POLLIN, 1), 0);      /* long past */
    assert_int_equal(co_poll(&p, fd, POLLIN | POLLOUT, DEADLINE_NEVER), POLLOUT);
    assert_int_equal(eventfd_write(fd, 1), 0);
    assert_int_equal(co_poll(&p, fd, POLLIN, DEADLINE_NEVER), POLLIN);
    assert_int_equal(co_poll(&p, fd, POLLIN, loop_now() + NSEC_PER_SEC), POLLIN);
    assert_int_equal(co_poll(&p, file, POLLIN, DEADLINE_NEVER), POLLIN);
    assert_int_equal(co_poll(&p, -1, POLLIN, DEADLINE_NEVER), -EBADF);
    close(file);
    close(fd);

    /* The number is used again for something else. */
    int again = eventfd(1, EFD_CLOEXEC);

    assert_int_equal(again, fd);
    assert_int_equal(co_poll(&p, again, POLLIN, DEADLINE_NEVER), POLLIN);
    close(again);
}

static void poll_sees_events_and_deadlines(void **state)
{
    in_loop(poll_sees_events_and_deadlines_body);
}

static struct co_poll shared_poll;
static int poll_fd, poll_result;

static void poll_for_ever(void *arg)
{
    poll_result = co_poll(&shared_poll, poll_fd, POLLIN, DEADLINE_NEVER);
    gate_pass(&gate);
}

static void poll_can_be_woken_body(void)
{
    poll_fd = eventfd(0, EFD_CLOEXEC);
    co_poll_wake(&shared_poll);     /* nobody waits: nothing happens */

    gate_init(&gate, 1);
    poll_result = -1;
    co_start(poll_for_ever, NULL);
    co_sleep(NSEC_PER_MSEC);
    co_poll_wake(&shared_poll);
    co_poll_wake(&shared_poll);
    co_gate_wait(&gate);
    assert_int_equal(poll_result, 0);

    /* Woken before the engine even knows of it. */
    gate_init(&gate, 1);
    poll_result = -1;
    co_start(poll_for_ever, NULL);
    while (!shared_poll.waiter)
        co_yield();
    co_poll_wake(&shared_poll);
    co_gate_wait(&gate);
    assert_int_equal(poll_result, 0);

    /* Event and wake-up together: one of them, once. */
    gate_init(&gate, 1);
    co_start(poll_for_ever, NULL);
    co_sleep(NSEC_PER_MSEC);
    assert_int_equal(eventfd_write(poll_fd, 1), 0);
    co_poll_wake(&shared_poll);
    co_gate_wait(&gate);
    assert_true(poll_result == 0 || poll_result == POLLIN);
    close(poll_fd);
}

static void poll_can_be_woken(void **state)
{
    in_loop(poll_can_be_woken_body);
}

static int polled;

static void poll_alone(void *arg)
{
    struct co_poll p = { 0 };

    polled += co_poll(&p, poll_fd, POLLIN, DEADLINE_NEVER) == POLLIN;
    gate_pass(&gate);
}

/* More completions at once than the queue from the kernel holds. */
static void thousands_may_wait_for_one_event_body(void)
{
    polled = 0;
    gate_init(&gate, MANY);
    poll_fd = eventfd(0, EFD_CLOEXEC);
    for (int i = 0; i < MANY; i++)
        co_start(poll_alone, NULL);
    co_sleep(5 * NSEC_PER_MSEC);
    assert_int_equal(polled, 0);
    assert_int_equal(eventfd_write(poll_fd, 1), 0);
    co_gate_wait(&gate);
    assert_int_equal(polled, MANY);
    close(poll_fd);
}

static void thousands_may_wait_for_one_event(void **state)
{
    in_loop(thousands_may_wait_for_one_event_body);
}

static void poll_until_done(void *arg)
{
    struct co_poll p = { 0 };
    short events = (short)(uintptr_t)arg;

    assert_int_equal(co_poll(&p, poll_fd, events, DEADLINE_NEVER), events);
    gate_pass(&gate);
}

static void reader_and_writer_may_wait_for_one_descriptor_body(void)
{
    static char block[4096];
    int fds[2], n_blocks = 0;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    while (send(fds[0], block, sizeof(block), 0) > 0)
        n_blocks++;
    poll_fd = fds[0];
    gate_init(&gate, 2);
    co_start(poll_until_done, (void *)(uintptr_t)POLLIN);
    co_start(poll_until_done, (void *)(uintptr_t)POLLOUT);
    co_sleep(NSEC_PER_MSEC);
    assert_int_equal(gate.left, 2);
    assert_int_equal(send(fds[1], "x", 1, 0), 1);
    co_sleep(2 * NSEC_PER_MSEC);
    assert_int_equal(gate.left, 1);
    while (n_blocks-- > 0)
        assert_true(recv(fds[1], block, sizeof(block), 0) > 0);
    co_gate_wait(&gate);
    close(fds[0]);
    close(fds[1]);
}

static void reader_and_writer_may_wait_for_one_descriptor(void **state)
{
    in_loop(reader_and_writer_may_wait_for_one_descriptor_body);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(connections_are_made_and_shutdown_ends_accept),
    cmocka_unit_test(a_refused_connection_says_so),
    cmocka_unit_test(a_full_unix_backlog_is_waited_for),
    cmocka_unit_test(receive_waits_on_any_socket),
    cmocka_unit_test(send_waits_for_room),
    cmocka_unit_test(poll_sees_events_and_deadlines),
    cmocka_unit_test(poll_can_be_woken),
    cmocka_unit_test(thousands_may_wait_for_one_event),
    cmocka_unit_test(reader_and_writer_may_wait_for_one_descriptor),
};

LOOP_TEST_MAIN(tests)
