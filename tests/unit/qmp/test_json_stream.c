/* SPDX-License-Identifier: Apache-2.0
 *
 * Where JSON texts begin and end in a stream. Every case is fed whole and byte by
 * byte: how the bytes come may not matter.
 */
#include "co_test.h"
#include "base/schema.h"
#include "qmp/json_stream.h"

/* Feed @bytes in steps of @step and compare the texts that come out. */
static void expect_in_steps(const char *bytes, size_t step, const char *const *texts)
{
    struct json_stream js = JSON_STREAM_INIT;
    size_t len = strlen(bytes), at = 0;

    while (at < len) {
        size_t taken;
        enum json_stream_state s = json_stream_feed(&js, bytes + at, MIN(step, len - at), &taken);

        at += taken;
        assert_int_not_equal(s, JSON_STREAM_TOO_LONG);
        if (s == JSON_STREAM_MORE)
            continue;
        if (!*texts)
            fail_msg("unexpected text: %s", strbuf_text(&js.text));
        assert_string_equal(strbuf_text(&js.text), *texts++);
        json_stream_next(&js);
    }
    if (*texts)
        fail_msg("missing text: %s", *texts);
    json_stream_done(&js);
}

static void expect(const char *bytes, const char *const *texts)
{
    for (size_t step = 1; step <= strlen(bytes); step++)
        expect_in_steps(bytes, step, texts);
}

#define EXPECT(bytes, ...) expect(bytes, (const char *const[]){ __VA_ARGS__, NULL })

static void values_end_where_their_brackets_close(void **state)
{
    EXPECT("{}", "{}");
    EXPECT(" {\"a\": [1, {\"b\": {}}]}\n", "{\"a\": [1, {\"b\": {}}]}");
    EXPECT("{\"a\":1}{\"b\":2} [3]", "{\"a\":1}", "{\"b\":2}", "[3]");
    EXPECT("{\n\"a\"\n:\n1\n}\n", "{\n\"a\"\n:\n1\n}");
}

static void brackets_in_strings_do_not_count(void **state)
{
    EXPECT("{\"}\": \"]\\\"{\"}", "{\"}\": \"]\\\"{\"}");
    EXPECT("{\"a\": \"\\\\\"}", "{\"a\": \"\\\\\"}");
    EXPECT("\"x\"", "\"x\"");
}

static void single_quotes_become_double_ones(void **state)
{
    EXPECT("{'a': 'b'}", "{\"a\": \"b\"}");
    EXPECT("{'a': 'say \"x\"'}", "{\"a\": \"say \\\"x\\\"\"}");
    EXPECT("{'a': 'it\\'s'}", "{\"a\": \"it's\"}");
    EXPECT("{\"a\": \"it's\"}", "{\"a\": \"it's\"}");
    EXPECT("{\"a\": \"it\\'s\"}", "{\"a\": \"it's\"}");
}

static void words_end_before_what_follows(void **state)
{
    EXPECT("true false\n", "true", "false");
    EXPECT("12{}", "12", "{}");
    EXPECT("foo}bar ", "foo", "}", "bar");
}

static void rubbish_is_one_text_each(void **state)
{
    EXPECT("}", "}");
    EXPECT("] , :", "]", ",", ":");
    EXPECT("{\"a\":[}\n{}", "{\"a\":[}", "{}");
    EXPECT("[}{}", "[}", "{}");
}

static void a_forgotten_quote_costs_one_line(void **state)
{
    EXPECT("{\"execute\":\"abc\n{\"b\":1}\n", "{\"execute\":\"abc ", "{\"b\":1}");
    EXPECT("'abc\n{}", "\"abc ", "{}");
}

static void nesting_deeper_than_it_remembers_is_still_followed(void **state)
{
    char deep[4 * LIMIT_JSON_DEPTH + 1];
    size_t half = 2 * LIMIT_JSON_DEPTH;

    memset(deep, '[', half);
    memset(deep + half, ']', half);
    deep[2 * half] = '\0';
    EXPECT(deep, deep);
}

static void a_message_that_does_not_end_is_given_up(void **state)
{
    struct json_stream js = JSON_STREAM_INIT;
    size_t fed = 0, taken;
    char block[4096];

    memset(block, 'x', sizeof(block));
    block[0] = '"';
    for (;;) {
        enum json_stream_state s = json_stream_feed(&js, block, sizeof(block), &taken);

        block[0] = 'x';
        fed += taken;
        if (s == JSON_STREAM_TOO_LONG)
            break;
        assert_int_equal(s, JSON_STREAM_MORE);
        assert_true(fed <= LIMIT_QMP_INPUT);
    }
    assert_int_equal(fed, LIMIT_QMP_INPUT);
    json_stream_done(&js);
}

/* Whatever comes, it ends, and what it gives is never longer than what it took plus
 * the backslashes that quotes need. */
static void mangled_texts_never_confuse_it(void **state)
{
    static const char alphabet[] = "{}[]:,\"'\\ \n0ae\x80";
    uint64_t seed = test_seed(7);

    for (unsigned round = 0; round < 20000; round++) {
        struct json_stream js = JSON_STREAM_INIT;
        char bytes[64];
        size_t len = test_random(&seed, sizeof(bytes)) + 1, at = 0;

        for (size_t i = 0; i < len; i++)
            bytes[i] = alphabet[test_random(&seed, sizeof(alphabet))];
        while (at < len) {
            size_t taken;
            enum json_stream_state s = json_stream_feed(&js, bytes + at, len - at, &taken);

            assert_true(taken <= len - at);
            at += taken;
            if (s == JSON_STREAM_MORE) {
                assert_int_equal(at, len);
                break;
            }
            assert_true(js.text.len >= 1 && js.text.len <= 2 * len);
            json_decref(schema_parse_json(strbuf_text(&js.text), js.text.len, NULL));
            json_stream_next(&js);
        }
        json_stream_done(&js);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_end_where_their_brackets_close),
        cmocka_unit_test(brackets_in_strings_do_not_count),
        cmocka_unit_test(single_quotes_become_double_ones),
        cmocka_unit_test(words_end_before_what_follows),
        cmocka_unit_test(rubbish_is_one_text_each),
        cmocka_unit_test(a_forgotten_quote_costs_one_line),
        cmocka_unit_test(nesting_deeper_than_it_remembers_is_still_followed),
        cmocka_unit_test(a_message_that_does_not_end_is_given_up),
        cmocka_unit_test(mangled_texts_never_confuse_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
