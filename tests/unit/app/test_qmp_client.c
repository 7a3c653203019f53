/* SPDX-License-Identifier: Apache-2.0
 *
 * The client of QMP, against a daemon that says what a test tells it to: all of it
 * lies in the socket before the client asks, so no test waits for anything.
 */
#include "app/qmp_client.h"
#include "co_test.h"
#include "loop/loop.h"
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
#define NEGOTIATED "{\"return\": {}, \"id\": 1}\r\n"

struct script {
    int daemon;                /* the other end */
    int client;
};

/* A socket with @text in it. */
static struct script say(const char *text)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(write(fds[0], text, strlen(text)), strlen(text));
    return (struct script){ fds[0], fds[1] };
}

static struct qmp_client *connect_to(struct script *s, const char *text)
{
    struct err err = ERR_INIT;
    struct qmp_client *c;

    *s = say(text);
    c = qmp_client_over(s->client, NULL, &err);
    if (!c)
        fail_msg("%s", err.text);
    return c;
}

static void end(struct script *s, struct qmp_client *c)
{
    qmp_client_free(c);
    close(s->daemon);
}

static void answers_are_told_from_events(void **state)
{
    struct script s;
    struct qmp_client *c = connect_to(&s, GREETING
                                      "{\"event\": \"A\"}\n" NEGOTIATED "{\"event\": \"B\"}\n"
                                      "{\"return\": 5, \"id\": 2}\n{\"event\": \"C\"}\n");
    struct err err;
    json_t *ret, *event;

    assert_true(qmp_client_execute(c, "ask", NULL, &ret, &err));
    assert_int_equal(json_integer_value(ret), 5);
    json_decref(ret);
    for (const char *name = "ABC"; *name; name++) {
        assert_int_equal(qmp_client_wait(c, loop_now(), &event, &err), QMP_WAIT_EVENT);
        assert_int_equal(*json_string_value(json_object_get(event, "event")), *name);
        json_decref(event);
    }
    assert_int_equal(qmp_client_wait(c, loop_now(), &event, &err), QMP_WAIT_TIMEOUT);
    end(&s, c);
}

static bool is_a(const json_t *event, const void *arg)
{
    return strcmp(json_string_value(json_object_get(event, "event")), arg) == 0;
}

static void events_up_to_the_last_of_a_kind_are_forgotten(void **state)
{
    struct script s;
    struct qmp_client *c = connect_to(&s, GREETING NEGOTIATED
                                      "{\"event\": \"A\"}\n{\"event\": \"B\"}\n"
                                      "{\"event\": \"A\"}\n{\"event\": \"C\"}\n"
                                      "{\"return\": {}, \"id\": 2}\n");
    struct err err;
    json_t *event;

    assert_true(qmp_client_execute(c, "ask", NULL, NULL, &err));
    qmp_client_forget_until(c, is_a, "Z");
    assert_int_equal(qmp_client_wait(c, loop_now(), &event, &err), QMP_WAIT_EVENT);
    assert_true(is_a(event, "A"));
    json_decref(event);
    qmp_client_forget_until(c, is_a, "A");
    assert_int_equal(qmp_client_wait(c, loop_now(), &event, &err), QMP_WAIT_EVENT);
    assert_true(is_a(event, "C"));
    json_decref(event);
    qmp_client_forget_until(c, is_a, "A");
    assert_int_equal(qmp_client_wait(c, loop_now(), &event, &err), QMP_WAIT_TIMEOUT);
    end(&s, c);
}

static void commands_are_sent_as_lines(void **state)
{
    struct script s;
    struct qmp_client *c = connect_to(&s, GREETING NEGOTIATED "{\"return\": {}, \"id\": 2}\n");
    struct err err;
    char got[256] = "";

    assert_true(qmp_client_execute(c, "do", json_pack("{s:i}", "x", 1), NULL, &err));
    assert_true(read(s.daemon, got, sizeof(got) - 1) > 0);
    assert_string_equal(got, "{\"execute\":\"qmp_capabilities\",\"id\":1}\n"
                             "{\"execute\":\"do\",\"id\":2,\"arguments\":{\"x\":1}}\n");
    end(&s, c);
}

static void errors_keep_class_and_words(void **state)
{
    struct script s;
    struct qmp_client *c = connect_to(&s, GREETING NEGOTIATED
                                      "{\"error\": {\"class\": \"DeviceNotActive\", \"desc\": "
                                      "\"no such job\"}, \"id\": 2}\n"
                                      "{\"error\": 7, \"id\": 3}\n");
    struct err err;

    assert_false(qmp_client_execute(c, "cancel", NULL, NULL, &err));
    assert_int_equal(err.class, ERR_DEVICE_NOT_ACTIVE);
    assert_string_equal(err.text, "no such job");
    assert_false(qmp_client_execute(c, "cancel", NULL, NULL, &err));
    assert_int_equal(err.class, ERR_GENERIC);
    end(&s, c);
}

static void an_answer_to_something_else_is_no_answer(void **state)
{
    struct script s;
    struct qmp_client *c = connect_to(&s, GREETING NEGOTIATED
                                      "{\"return\": 1, \"id\": 77}\n{\"return\": 2, \"id\": 2}\n");
    struct err err;
    json_t *ret;

    assert_true(qmp_client_execute(c, "ask", NULL, &ret, &err));
    assert_int_equal(json_integer_value(ret), 2);
    json_decref(ret);
    end(&s, c);
}

static void rubbish_ends_the_conversation(void **state)
{
    static const char *const rubbish[] = {
        "SSH-2.0-OpenSSH\n", "{}\n", "[]\n", "7\n", "{\"QMP\": \n", "\n", "\xff\xfe\n",
        GREETING "hello\n", GREETING "[1, 2]\n",
    };

    for (size_t i = 0; i < ARRAY_SIZE(rubbish); i++) {
        struct script s = say(rubbish[i]);
        struct err err = ERR_INIT;

        assert_null(qmp_client_over(s.client, NULL, &err));
        assert_true(err.code < 0);
        close(s.daemon);
    }
}

static void a_daemon_that_goes_away(void **state)
{
    struct script s;
    struct qmp_client *c = connect_to(&s, GREETING NEGOTIATED "{\"event\": \"LAST\"}\n{\"ev");
    struct err err;
    json_t *event;

    shutdown(s.daemon, SHUT_RDWR);
    /* What it said before is still heard. */
    assert_int_equal(qmp_client_wait(c, loop_now() + NSEC_PER_SEC, &event, &err), QMP_WAIT_EVENT);
    json_decref(event);
    assert_int_equal(qmp_client_wait(c, loop_now() + NSEC_PER_SEC, &event, &err), QMP_WAIT_GONE);
    assert_int_equal(err.code, -ECONNRESET);
    assert_false(qmp_client_execute(c, "ask", NULL, NULL, &err));
    assert_int_equal(err.code, -ECONNRESET);
    end(&s, c);
}

static void interrupts_end_a_wait(void **state)
{
    struct interrupt i;
    struct err err = ERR_INIT;
    struct script s = say(GREETING NEGOTIATED);
    json_t *event;

    assert_true(interrupt_init(&i, &err));

    struct qmp_client *c = qmp_client_over(s.client, &i, &err);

    assert_non_null(c);
    raise(SIGINT);
    assert_int_equal(qmp_client_wait(c, UINT64_MAX, &event, &err), QMP_WAIT_INTERRUPT);
    assert_int_equal(i.count, 1);
    /* The second one gives up a command too. */
    raise(SIGTERM);
    assert_false(qmp_client_execute(c, "ask", NULL, NULL, &err));
    assert_int_equal(err.code, -EINTR);
    assert_int_equal(i.count, 2);
    end(&s, c);
    interrupt_done(&i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_told_from_events),
        cmocka_unit_test(events_up_to_the_last_of_a_kind_are_forgotten),
        cmocka_unit_test(commands_are_sent_as_lines),
        cmocka_unit_test(errors_keep_class_and_words),
        cmocka_unit_test(an_answer_to_something_else_is_no_answer),
        cmocka_unit_test(rubbish_ends_the_conversation),
        cmocka_unit_test(a_daemon_that_goes_away),
        cmocka_unit_test(interrupts_end_a_wait),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
