/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: what the tables describe is decoded whole or refused in QEMU's words,
 * from JSON strictly and from key=value leniently; encoding is the reverse; no
 * input leaks (the sanitizer build looks).
 * Method: tables of texts with the error, or with the JSON that encoding gives.
 */
#include "base/limits.h"
#include "base/strbuf.h"
#include "schema_types.h"
#include "unit.h"

/* Decode @text and encode it again as compact JSON, or give the error's text. */
static char *through(const struct schema_type *type, const char *text)
{
    struct err err = ERR_INIT;
    bool keyval;
    json_t *in = schema_parse_text(text, NULL, &keyval, &err);

    assert_non_null(in);
    void *out = schema_decode_new(type, in, keyval, &err);
    json_decref(in);
    if (!out) {
        assert_true(err.code < 0);
        return strdup(err.text);
    }
    json_t *back = schema_encode(type, out);
    char *dump = json_dumps(back, JSON_COMPACT);

    json_decref(back);
    schema_free(type, out);
    return dump;
}

static void check(const struct schema_type *type, const char *const (*cases)[2], size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char *got = through(type, cases[i][0]);

        if (strcmp(got, cases[i][1]) != 0)
            print_error("for %s\n", cases[i][0]);
        assert_string_equal(got, cases[i][1]);
        free(got);
    }
}

static void json_is_taken_strictly(void **state)
{
    static const char *const cases[][2] = {
        { "{}", "{}" },
        { "{\"flag\":true,\"number\":-5,\"count\":4294967295,\"size\":9223372036854775807,"
          "\"name\":\"x\",\"aio\":\"native\",\"names\":[\"a\",\"b\"],\"any\":{\"k\":[1,null]}}",
          "{\"flag\":true,\"number\":-5,\"count\":4294967295,\"size\":9223372036854775807,"
          "\"name\":\"x\",\"aio\":\"native\",\"names\":[\"a\",\"b\"],\"any\":{\"k\":[1,null]}}" },
        { "{\"names\":[]}", "{\"names\":[]}" },
        { "{\"nested\":{\"filename\":\"f\"}}", "{\"nested\":{\"filename\":\"f\"}}" },
        { "{\"flag\":\"on\"}", "Invalid parameter type for 'flag', expected: boolean" },
        { "{\"flag\":1}", "Invalid parameter type for 'flag', expected: boolean" },
        { "{\"number\":\"1\"}", "Invalid parameter type for 'number', expected: integer" },
        { "{\"number\":1.0}", "Invalid parameter type for 'number', expected: integer" },
        { "{\"number\":null}", "Invalid parameter type for 'number', expected: integer" },
        { "{\"ratio\":1.5}", "{\"ratio\":1.5}" },
        { "{\"ratio\":-2}", "{\"ratio\":-2.0}" },
        { "{\"ratio\":\"1\"}", "Invalid parameter type for 'ratio', expected: number" },
        { "{\"count\":4294967296}", "Parameter 'count' expects uint32_t" },
        { "{\"count\":-1}", "Parameter 'count' expects uint32_t" },
        { "{\"size\":-1}", "Parameter 'size' expects uint64" },
        { "{\"size\":\"1k\"}", "Invalid parameter type for 'size', expected: integer" },
        { "{\"name\":1}", "Invalid parameter type for 'name', expected: string" },
        { "{\"aio\":3}", "Invalid parameter type for 'aio', expected: string" },
        { "{\"aio\":\"uring\"}", "Parameter 'aio' does not accept value 'uring'" },
        { "{\"nested\":[]}", "Invalid parameter type for 'nested', expected: object" },
        { "{\"nested\":{}}", "Parameter 'nested.filename' is missing" },
        { "{\"nested\":{\"filename\":\"f\",\"x\":1}}", "Parameter 'nested.x' is unexpected" },
        { "{\"names\":\"a\"}", "Invalid parameter type for 'names', expected: array" },
        { "{\"names\":[\"a\",7]}", "Invalid parameter type for 'names[1]', expected: string" },
        { "{\"nodes\":[{\"driver\":\"null\"},{\"driver\":\"file\"}]}",
          "Parameter 'nodes[1].filename' is missing" },
        { "{\"other\":1}", "Parameter 'other' is unexpected" },
    };

    check(&everything_type, cases, ARRAY_SIZE(cases));
}

static void keyval_scalars_are_converted(void **state)
{
    static const char *const cases[][2] = {
        { "flag=on", "{\"flag\":true}" },
        { "flag=yes", "{\"flag\":true}" },
        { "flag=true", "{\"flag\":true}" },
        { "flag=y", "{\"flag\":true}" },
        { "flag=off", "{\"flag\":false}" },
        { "flag=no", "{\"flag\":false}" },
        { "flag=false", "{\"flag\":false}" },
        { "flag=n", "{\"flag\":false}" },
        { "flag=1", "Parameter 'flag' expects 'on' or 'off'" },
        { "flag=", "Parameter 'flag' expects 'on' or 'off'" },
        { "number=-12", "{\"number\":-12}" },
        { "number=0x10", "{\"number\":16}" },
        { "number=12x", "Parameter 'number' expects integer" },
        { "number=", "Parameter 'number' expects integer" },
        { "number=9223372036854775808", "Parameter 'number' expects integer" },
        { "ratio=1.5", "{\"ratio\":1.5}" },
        { "ratio=1.5x", "Parameter 'ratio' expects number" },
        { "ratio=inf", "Parameter 'ratio' expects number" },
        { "ratio=1e999", "Parameter 'ratio' expects number" },
        { "ratio=", "Parameter 'ratio' expects number" },
        { "count=4294967296", "Parameter 'count' expects uint32_t" },
        { "size=64k", "{\"size\":65536}" },
        { "size=1.5M", "{\"size\":1572864}" },
        { "size=-1", "Parameter 'size' expects size" },
        { "aio=io_uring", "{\"aio\":\"io_uring\"}" },
        { "aio=x", "Parameter 'aio' does not accept value 'x'" },
        { "names.0=a,names.1=b,,c", "{\"names\":[\"a\",\"b,c\"]}" },
        { "names.0.x=a", "Parameters 'names.0.*' are unexpected" },
        { "number.x=a", "Parameters 'number.*' are unexpected" },
        { "nested=x", "Invalid parameter type for 'nested', expected: object" },
        { "nested.filename=f,nested.aio=native",
          "{\"nested\":{\"filename\":\"f\",\"aio\":\"native\"}}" },
        { "nodes.0.driver=file", "Parameter 'nodes.0.filename' is missing" },
        { "any.k=v", "{\"any\":{\"k\":\"v\"}}" },
    };

    check(&everything_type, cases, ARRAY_SIZE(cases));
}

static void unions_choose_their_branch(void **state)
{
    static const char *const cases[][2] = {
        { "driver=file,filename=f,node-name=n",
          "{\"driver\":\"file\",\"node-name\":\"n\",\"filename\":\"f\"}" },
        { "driver=null", "{\"driver\":\"null\"}" },
        { "driver=null,filename=f", "Parameter 'filename' is unexpected" },
        { "driver=nosuch", "Parameter 'driver' does not accept value 'nosuch'" },
        { "node-name=n", "Parameter 'driver' is missing" },
        { "{\"driver\":1}", "Invalid parameter type for 'driver', expected: string" },
        { "driver=raw,file=n,offset=1k", "{\"driver\":\"raw\",\"file\":\"n\",\"offset\":1024}" },
        { "driver=raw,file.driver=raw,file.file.driver=file,file.file.filename=f",
          "{\"driver\":\"raw\",\"file\":{\"driver\":\"raw\",\"file\":"
          "{\"driver\":\"file\",\"filename\":\"f\"}}}" },
        { "driver=raw,file.driver=raw,file.file.driver=zz",
          "Parameter 'file.file.driver' does not accept value 'zz'" },
        { "driver=raw", "Parameter 'file' is missing" },
        { "{\"driver\":\"raw\",\"file\":5}",
          "Invalid parameter type for 'file', expected: NodeRef" },
        { "{\"driver\":\"raw\",\"file\":null}",
          "Invalid parameter type for 'file', expected: NodeRef" },
    };
    static const char *const shapes[][2] = {
        { "kind=none", "{\"kind\":\"none\"}" },
        { "kind=circle,radius=7", "{\"kind\":\"circle\",\"radius\":7}" },
        { "kind=circle", "Parameter 'radius' is missing" },
        { "kind=none,radius=7", "Parameter 'radius' is unexpected" },
        { "kind=square", "Parameter 'kind' does not accept value 'square'" },
    };

    check(&node_options_type, cases, ARRAY_SIZE(cases));
    check(&shape_type, shapes, ARRAY_SIZE(shapes));
}

static void alternates_take_what_they_say(void **state)
{
    static const char *const cases[][2] = {
        { "{\"ref\":null}", "{\"ref\":null}" },
        { "{\"ref\":\"n\"}", "{\"ref\":\"n\"}" },
        { "{\"ref\":{\"driver\":\"null\"}}", "{\"ref\":{\"driver\":\"null\"}}" },
        { "{\"ref\":true}", "Invalid parameter type for 'ref', expected: NodeRefOrNull" },
        { "{\"ref\":{\"driver\":\"null\",\"x\":1}}", "Parameter 'ref.x' is unexpected" },
    };

    check(&everything_type, cases, ARRAY_SIZE(cases));
}

static void decoded_fields_are_where_the_struct_has_them(void **state)
{
    json_t *in = json_pack("{s:s, s:b, s:{s:s, s:s, s:s}}", "driver", "raw", "read-only", 1,
                           "file", "driver", "file", "filename", "/x", "aio", "io_uring");
    struct node_options *n = schema_decode_new(&node_options_type, in, false, NULL);
    const struct raw_options *raw = n->branch;
    const struct node_options *inner = raw->file.object;
    const struct file_options *file = inner->branch;

    assert_string_equal(n->driver, "raw");
    assert_true(n->has_read_only && n->read_only);
    assert_false(n->has_node_name);
    assert_null(n->node_name);
    assert_int_equal(raw->file.kind, SCHEMA_ALT_OBJECT);
    assert_false(raw->has_offset);
    assert_string_equal(file->filename, "/x");
    assert_int_equal(file->aio, schema_enum_index(&aio_type, "io_uring"));
    schema_free(&node_options_type, n);
    json_decref(in);
}

static void clear_leaves_zeroes(void **state)
{
    static const struct everything zero;
    struct everything e;
    json_t *in = json_pack("{s:s, s:[s,s], s:{s:i}}", "name", "x", "names", "a", "b", "any", "k",
                           1);

    assert_true(schema_decode(&everything_type, in, false, &e, NULL));
    json_decref(in);
    assert_int_equal(e.names.n, 2);
    schema_clear(&everything_type, &e);
    assert_memory_equal(&e, &zero, sizeof(e));
    schema_free(&everything_type, NULL);
}

static void a_failed_decode_owns_nothing(void **state)
{
    static const struct everything zero;
    struct err err = ERR_INIT;
    struct everything e;
    json_t *in = json_pack("{s:s, s:[s,i], s:s}", "name", "x", "names", "a", 5, "zz", "y");

    assert_false(schema_decode(&everything_type, in, false, &e, &err));
    assert_memory_equal(&e, &zero, sizeof(e));
    json_decref(in);
}

static void depth_is_bounded(void **state)
{
    json_t *in = json_pack("{s:s}", "driver", "null");
    struct err err = ERR_INIT;

    for (int i = 0; i < 4 * LIMIT_JSON_DEPTH; i++)
        in = json_pack("{s:s, s:o}", "driver", "raw", "file", in);
    assert_null(schema_decode_new(&node_options_type, in, false, &err));
    assert_non_null(strstr(err.text, "is nested too deeply"));
    json_decref(in);

    in = json_pack("{s:s}", "driver", "null");
    for (int i = 0; i < LIMIT_JSON_DEPTH - 1; i++)
        in = json_pack("{s:s, s:o}", "driver", "raw", "file", in);
    void *out = schema_decode_new(&node_options_type, in, false, &err);
    assert_non_null(out);
    schema_free(&node_options_type, out);
    json_decref(in);
}

static void array_size_is_bounded(void **state)
{
    struct err err = ERR_INIT;
    struct everything e;
    json_t *list = json_array(), *in = json_pack("{s:o}", "names", list);

    for (int i = 0; i < LIMIT_SCHEMA_ARRAY; i++)
        json_array_append_new(list, json_string("x"));
    assert_true(schema_decode(&everything_type, in, false, &e, &err));
    assert_int_equal(e.names.n, LIMIT_SCHEMA_ARRAY);
    schema_clear(&everything_type, &e);
    json_array_append_new(list, json_string("x"));
    assert_false(schema_decode(&everything_type, in, false, &e, &err));
    assert_string_equal(err.text, "Parameter 'names' has more than 16384 elements");
    json_decref(in);
}

/* A name longer than any buffer for it is cut, not written over the end. */
static void absurd_names_are_cut(void **state)
{
    CLEANUP_STRBUF struct strbuf key = STRBUF_INIT;
    struct err err = ERR_INIT;
    json_t *in = json_object();

    for (int i = 0; i < 5000; i++)
        strbuf_addc(&key, 'k');
    json_object_set_new(in, strbuf_text(&key), json_true());
    assert_null(schema_decode_new(&everything_type, in, false, &err));
    assert_true(strlen(err.text) < sizeof(err.text));
    json_decref(in);
}

static void encoding_replaces_what_is_not_utf8(void **state)
{
    static const char *const cases[][2] = {
        { "plain", "plain" },
        { "", "" },
        { "\xc3\xa4 \xf0\x9f\x98\x80", "\xc3\xa4 \xf0\x9f\x98\x80" },
        { "a\xff" "b\xc3", "a\xef\xbf\xbd" "b\xef\xbf\xbd" },
        { "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        json_t *s = schema_json_str(cases[i][0]);

        assert_string_equal(json_string_value(s), cases[i][1]);
        json_decref(s);
    }
}

static void file_names_need_not_be_utf8(void **state)
{
    bool keyval;
    json_t *in = schema_parse_text("filename=/a\xff", NULL, &keyval, NULL);
    struct file_options *f = schema_decode_new(&file_options_type, in, keyval, NULL);

    assert_string_equal(f->filename, "/a\xff");
    schema_free(&file_options_type, f);
    json_decref(in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_is_taken_strictly),
        cmocka_unit_test(keyval_scalars_are_converted),
        cmocka_unit_test(unions_choose_their_branch),
        cmocka_unit_test(alternates_take_what_they_say),
        cmocka_unit_test(decoded_fields_are_where_the_struct_has_them),
        cmocka_unit_test(clear_leaves_zeroes),
        cmocka_unit_test(a_failed_decode_owns_nothing),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(array_size_is_bounded),
        cmocka_unit_test(absurd_names_are_cut),
        cmocka_unit_test(encoding_replaces_what_is_not_utf8),
        cmocka_unit_test(file_names_need_not_be_utf8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
