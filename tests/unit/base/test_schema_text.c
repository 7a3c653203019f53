/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: key=value text is read as QEMU's util/keyval.c reads it, with its words
 * for errors; JSON text is bounded; sizes are exact and never wrap.
 * Method: tables of texts. The expected errors of keyval were taken from
 * qemu-storage-daemon 7.2's answers.
 */
#include "base/limits.h"
#include "base/schema.h"
#include "base/strbuf.h"
#include "unit.h"

static char *parsed(const char *text, const char *implied_key)
{
    struct err err = ERR_INIT;
    bool keyval;
    json_t *v = schema_parse_text(text, implied_key, &keyval, &err);

    if (!v)
        return strdup(err.text);
    char *dump = json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(v);
    return dump;
}

static void check(const char *const (*cases)[2], size_t n, const char *implied_key)
{
    for (size_t i = 0; i < n; i++) {
        char *got = parsed(cases[i][0], implied_key);

        if (strcmp(got, cases[i][1]) != 0)
            print_error("for %s\n", cases[i][0]);
        assert_string_equal(got, cases[i][1]);
        free(got);
    }
}

static void keyval_becomes_nested_objects(void **state)
{
    static const char *const cases[][2] = {
        { "", "{}" },
        { "a=b", "{\"a\":\"b\"}" },
        { "a=b,", "{\"a\":\"b\"}" },
        { "a=", "{\"a\":\"\"}" },
        { "a==b", "{\"a\":\"=b\"}" },
        { "a=b,,c,d=e", "{\"a\":\"b,c\",\"d\":\"e\"}" },
        { "a=,,,d=e", "{\"a\":\",\",\"d\":\"e\"}" },
        { "a=b,,", "{\"a\":\"b,\"}" },
        { "a.b=1,a.c.d=2", "{\"a\":{\"b\":\"1\",\"c\":{\"d\":\"2\"}}}" },
        { "a=1,a=2", "{\"a\":\"2\"}" },
        { "a.b=1,c=0,a.b=2", "{\"a\":{\"b\":\"2\"},\"c\":\"0\"}" },
        { "node-name=x,x_y=1", "{\"node-name\":\"x\",\"x_y\":\"1\"}" },
    };

    check(cases, ARRAY_SIZE(cases), NULL);
}

static void indexes_become_arrays(void **state)
{
    static const char *const cases[][2] = {
        { "a.0=x,a.1=y", "{\"a\":[\"x\",\"y\"]}" },
        { "a.1=y,a.0=x", "{\"a\":[\"x\",\"y\"]}" },
        { "a.0.b=x,a.1.b=y", "{\"a\":[{\"b\":\"x\"},{\"b\":\"y\"}]}" },
        { "a.0.0=x,a.0.1=y", "{\"a\":[[\"x\",\"y\"]]}" },
        { "a.0=x,a.00=y", "{\"a\":[\"y\"]}" },
        { "a.1=y", "Parameter 'a.0' missing" },
        { "a.0=x,a.2=y", "Parameter 'a.1' missing" },
        { "a.b.0=x,a.b.99999999999999999999=y", "Parameter 'a.b.1' missing" },
        { "a.0=x,a.b=y", "Parameters 'a.*' used inconsistently" },
        { "c.a.0=x,c.a.b=y", "Parameters 'c.a.*' used inconsistently" },
        { "0=x", "Invalid parameter '0'" },
    };

    check(cases, ARRAY_SIZE(cases), NULL);
}

static void bad_keyval_is_named(void **state)
{
    static const char *const cases[][2] = {
        { ",", "Invalid parameter ''" },
        { "=1", "Invalid parameter ''" },
        { "a=1,,b=2", "{\"a\":\"1,b=2\"}" },
        { "size", "Expected '=' after parameter 'size'" },
        { "a=1,size,b=2", "Expected '=' after parameter 'size'" },
        { ".x=1", "Invalid parameter '.x'" },
        { "x.=1", "Invalid parameter 'x.'" },
        { "x..y=1", "Invalid parameter 'x..y'" },
        { "a b=1", "Invalid parameter 'a b'" },
        { "a.0x=1", "Invalid parameter 'a.0x'" },
        { "a.b=1,a=2", "Parameters 'a.*' used inconsistently" },
        { "a=1,a.b=2", "Parameters 'a.*' used inconsistently" },
        { "a.b=1,a.b.c=2", "Parameters 'a.b.*' used inconsistently" },
    };

    check(cases, ARRAY_SIZE(cases), NULL);
}

static void a_first_value_may_lack_its_key(void **state)
{
    static const char *const cases[][2] = {
        { "nbd,id=e", "{\"id\":\"e\",\"type\":\"nbd\"}" },
        { "nbd", "{\"type\":\"nbd\"}" },
        { "type=nbd,id=e", "{\"id\":\"e\",\"type\":\"nbd\"}" },
        { "id=e,nbd", "Expected '=' after parameter 'nbd'" },
        { "nbd,type=x", "{\"type\":\"x\"}" },
        { ",id=e", "Invalid parameter ''" },
    };

    check(cases, ARRAY_SIZE(cases), "type");
}

static void key_length_and_depth_are_bounded(void **state)
{
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    char *got;

    for (int i = 0; i < LIMIT_KEY_FRAGMENT; i++)
        strbuf_addc(&text, 'k');
    strbuf_add(&text, "=1");
    got = parsed(strbuf_text(&text), NULL);
    assert_int_equal(got[0], '{');
    free(got);
    strbuf_cut(&text, LIMIT_KEY_FRAGMENT);
    strbuf_add(&text, "k=1");
    got = parsed(strbuf_text(&text), NULL);
    assert_non_null(strstr(got, "' is too long"));
    free(got);

    strbuf_done(&text);
    for (int i = 0; i < LIMIT_JSON_DEPTH; i++)
        strbuf_addf(&text, "%sa", i ? "." : "");
    strbuf_add(&text, "=1");
    got = parsed(strbuf_text(&text), NULL);
    assert_int_equal(got[0], '{');
    free(got);
    strbuf_cut(&text, text.len - 2);
    strbuf_add(&text, ".a=1");
    got = parsed(strbuf_text(&text), NULL);
    assert_non_null(strstr(got, "nested too deeply"));
    free(got);
}

static void text_with_a_brace_is_json(void **state)
{
    struct err err = ERR_INIT;
    bool keyval = true;
    json_t *v = schema_parse_text("{\"a\":1}", "type", &keyval, &err);

    assert_non_null(v);
    assert_false(keyval);
    json_decref(v);
    assert_null(schema_parse_text("{\"a\":", NULL, &keyval, &err));
    assert_int_equal(strncmp(err.text, "JSON parse error, ", 18), 0);
}

static void bad_json_is_refused(void **state)
{
    static const char *const bad[] = {
        "", "{", "{\"a\":1,\"a\":2}", "{} x", "{\"a\":\"\\u0000\"}", "nul", "[1,]", "'a'",
        "\"\xff\"", "1e999", "123456789012345678901234567890",
    };
    struct err err = ERR_INIT;

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_null(schema_parse_json(bad[i], strlen(bad[i]), &err));
        assert_int_equal(strncmp(err.text, "JSON parse error, ", 18), 0);
    }
    json_t *v = schema_parse_json("5 ", 2, &err);
    assert_int_equal(json_integer_value(v), 5);
    json_decref(v);
}

static void json_depth_is_bounded_outside_strings(void **state)
{
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    struct err err = ERR_INIT;

    for (int i = 0; i < LIMIT_JSON_DEPTH; i++)
        strbuf_addc(&text, '[');
    strbuf_add(&text, "\"[[[[\\\"[[[[\"");
    for (int i = 0; i < LIMIT_JSON_DEPTH; i++)
        strbuf_addc(&text, ']');
    json_t *v = schema_parse_json(text.text, text.len, &err);
    assert_non_null(v);
    json_decref(v);

    strbuf_done(&text);
    for (int i = 0; i < 1000000; i++)
        strbuf_add(&text, "{\"a\":");
    assert_null(schema_parse_json(text.text, text.len, &err));
    assert_non_null(strstr(err.text, "nesting is deeper than 64 levels"));
}

static void sizes_are_exact(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        { "0", 0 }, { "1024", 1024 }, { "64k", 64 * KiB }, { "64K", 64 * KiB },
        { "1.5G", GiB + GiB / 2 }, { "1.1k", 1126 }, { "0.5k", 512 }, { "1.k", 1024 },
        { "7b", 7 }, { "2m", 2 * MiB }, { "3T", 3 * TiB }, { "1P", 1024 * TiB },
        { "15E", 15ULL << 60 }, { "15.9999999999999999E", (15ULL << 60) + 1152921504606846860 },
        { "18446744073709551615", UINT64_MAX }, { "0x1000", 4096 }, { "0xffk", 255 * KiB },
        { "010", 10 }, { "0.99999999999999999999999999999k", 1023 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        struct err err = ERR_INIT;
        uint64_t bytes = 1;

        if (!schema_parse_size(good[i].text, &bytes, &err))
            print_error("%s: %s\n", good[i].text, err.text);
        assert_int_equal(bytes, good[i].bytes);
    }
}

static void bad_sizes_are_refused(void **state)
{
    static const char *const bad[] = {
        "", " 1", "-1", "+1", "k", "1kk", "1x", "1 k", "64kB", "0x", "0x1.5k", "1.5", "1.5b",
        ".5k", "16E", "15.9999999999999999999E1", "18446744073709551616", "1e3", "1..5k", "nan",
        "18446744073709551615k",
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err err = ERR_INIT;
        uint64_t bytes = 1;

        if (schema_parse_size(bad[i], &bytes, &err))
            print_error("'%s' gave %ju\n", bad[i], (uintmax_t)bytes);
        assert_int_equal(bytes, 1);
        assert_int_equal(err.code, -EINVAL);
        assert_non_null(strstr(err.text, "is not a size"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keyval_becomes_nested_objects),
        cmocka_unit_test(indexes_become_arrays),
        cmocka_unit_test(bad_keyval_is_named),
        cmocka_unit_test(a_first_value_may_lack_its_key),
        cmocka_unit_test(key_length_and_depth_are_bounded),
        cmocka_unit_test(text_with_a_brace_is_json),
        cmocka_unit_test(bad_json_is_refused),
        cmocka_unit_test(json_depth_is_bounded_outside_strings),
        cmocka_unit_test(sizes_are_exact),
        cmocka_unit_test(bad_sizes_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
