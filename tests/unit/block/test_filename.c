/* SPDX-License-Identifier: Apache-2.0
 *
 * From image names to options: protocols, formats, "json:" and what is refused;
 * and the check against images that are their own backing files. The drivers
 * here only have their names.
 */
#include "co_test.h"
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct any_options {
    bool has_filename;
    char *filename;
    bool has_file;
    struct schema_alt file;
};

struct any_format_options {
    bool has_backing;
    struct schema_alt backing;
    bool has_file;
    struct schema_alt file;
};

static const struct schema_member any_members[] = {
    SCHEMA_OPTIONAL(struct any_options, filename, "filename", &schema_str, "name"),
    SCHEMA_OPTIONAL(struct any_options, file, "file", &blockdev_ref_type, "child"),
    SCHEMA_END,
};

static const struct schema_type any_type = {
    "Any", SCHEMA_STRUCT, "any", sizeof(struct any_options), .members = any_members,
};

static const struct schema_member format_members[] = {
    SCHEMA_OPTIONAL(struct any_format_options, backing, "backing", &blockdev_ref_or_null_type,
                    "backing"),
    SCHEMA_OPTIONAL(struct any_format_options, file, "file", &blockdev_ref_type, "child"),
    SCHEMA_END,
};

static const struct schema_type format_type = {
    "AnyFormat", SCHEMA_STRUCT, "any", sizeof(struct any_format_options),
    .members = format_members,
};

static int co_no_read(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                      int niov, unsigned flags)
{
    return -EIO;
}

/* An image that names @names as its backing file, whatever its name. */
static const char *names;
static unsigned opened;

static bool co_named_open(struct node *n, const void *opts, struct err *err)
{
    const struct any_options *o = opts;
    struct stat st;

    if (stat(o->filename, &st) < 0)
        return err_errno(err, -errno, "Could not open '%s'", o->filename);
    n->storage_id = storage_id_for_file(&st);
    return true;
}

static bool co_format_open(struct node *n, const void *opts, struct err *err)
{
    const struct any_format_options *o = opts;
    struct schema_alt ref;

    opened++;
    if (!co_node_open_child(n, "file", &o->file, EDGE_READ, EDGE_READ, err))
        return false;
    if (!names || o->has_backing)
        return true;
    if (!node_check_no_loop(n, names, err))
        return false;

    json_t *json = node_json_for_file(&(struct open_file_opts){ .filename = names,
                                                                .format = "qcow2" }, err);
    bool ok = json && schema_decode(&blockdev_ref_type, json, false, &ref, err);

    json_decref(json);
    if (!ok)
        return false;
    ok = co_node_open_child(n, "backing", &ref, EDGE_READ, EDGE_READ, err);
    schema_clear(&blockdev_ref_type, &ref);
    return ok;
}

static json_t *nbd_options(const char *filename, struct err *err)
{
    if (strstr(filename, "bad")) {
        err_set(err, -EINVAL, "'%s' is a bad URI", filename);
        return NULL;
    }
    return json_pack("{s:s}", "uri", filename);
}

/* Opens another of its kind below it, for ever. */
static bool co_endless_open(struct node *n, const void *opts, struct err *err)
{
    struct schema_alt ref;
    json_t *json = test_json("{'driver':'endless'}");

    opened++;
    assert_true(schema_decode(&blockdev_ref_type, json, false, &ref, err));
    json_decref(json);
    bool ok = co_node_open_child(n, "backing", &ref, EDGE_READ, EDGE_READ, err);

    schema_clear(&blockdev_ref_type, &ref);
    return ok;
}

static const struct driver drivers[] = {
    { "endless", .options = &any_type, .co_open = co_endless_open, .co_preadv = co_no_read },
    { "file", .options = &any_type, .is_protocol = true, .co_open = co_named_open,
      .co_preadv = co_no_read },
    { "nbd", .options = &any_type, .is_protocol = true, .co_open = co_named_open,
      .co_preadv = co_no_read, .parse_filename = nbd_options },
    { "raw", .options = &any_type, .co_open = co_named_open, .co_preadv = co_no_read },
    { "qcow2", .options = &format_type, .co_open = co_format_open, .co_preadv = co_no_read },
};

static void check_json(struct open_file_opts o, const char *want)
{
    struct err err = ERR_INIT;
    json_t *got = node_json_for_file(&o, &err), *wanted = test_json("%s", want);

    if (!got)
        fail_msg("%s", err.text);
    if (!json_equal(got, wanted))
        fail_msg("%s", json_dumps(got, 0));
    json_decref(got);
    json_decref(wanted);
}

#define OPTS(...) ((struct open_file_opts){ __VA_ARGS__ })

static void a_name_becomes_options(void **state)
{
    check_json(OPTS("a.img"), "{'driver':'raw','file':{'driver':'file','filename':'a.img'}}");
    check_json(OPTS("a.img", "qcow2", .no_backing = true, .read_only = true),
               "{'driver':'qcow2','file':{'driver':'file','filename':'a.img'},'backing':null,"
               "'read-only':true}");
    check_json(OPTS("a.img", .no_backing = true, .unmap = true, .direct = true,
                    .force_share = true, .node_name = "n"),
               "{'driver':'raw','file':{'driver':'file','filename':'a.img'},'discard':'unmap',"
               "'cache':{'direct':true},'force-share':true,'node-name':'n'}");
    check_json(OPTS("a.img", "file"), "{'driver':'file','filename':'a.img'}");
    check_json(OPTS("file:a:b"), "{'driver':'raw','file':{'driver':'file','filename':'a:b'}}");
    check_json(OPTS("./file:a"),
               "{'driver':'raw','file':{'driver':'file','filename':'./file:a'}}");
    check_json(OPTS("nbd+unix:///x?socket=s", "qcow2"),
               "{'driver':'qcow2','file':{'driver':'nbd','uri':'nbd+unix:///x?socket=s'}}");
    check_json(OPTS("json:{\"driver\":\"qcow2\",\"file\":\"f\"}", "qcow2"),
               "{'driver':'qcow2','file':'f'}");
    check_json(OPTS("json:{\"driver\":\"file\",\"filename\":\"f\"}"),
               "{'driver':'file','filename':'f'}");
    check_json(OPTS("json:{\"driver\":\"file\",\"filename\":\"f\"}", "qcow2", .read_only = true),
               "{'driver':'qcow2','file':{'driver':'file','filename':'f'},'read-only':true}");
}

static void bad_names_are_refused(void **state)
{
    static const struct { struct open_file_opts o; const char *want; } bad[] = {
        { { "" }, "empty" },
        { { "file:" }, "empty" },
        { { "http://x/y" }, "unknown protocol 'http'" },
        { { "file://x/y" }, "unknown protocol 'file'" },
        { { "a.img", "vmdk" }, "Unknown format 'vmdk'" },
        { { "nbd://bad" }, "'nbd://bad' is a bad URI" },
        { { "json:{" }, "JSON parse error" },
        { { "json:{}" }, "'driver'" },
        { { "json:[]" }, "'driver'" },
        { { "json:{\"driver\":\"none\"}" }, "'driver'" },
        { { "\xff\xfe" }, "UTF-8" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err err = ERR_INIT;

        assert_null(node_json_for_file(&bad[i].o, &err));
        if (!strstr(err.text, bad[i].want))
            fail_msg("%s", err.text);
    }
}

static void protocols_are_told_apart(void **state)
{
    assert_string_equal(protocol_for_filename("/etc/passwd"), "file");
    assert_string_equal(protocol_for_filename("nbd://host"), "nbd");
    assert_string_equal(protocol_for_filename("nbds+unix:///?socket=x"), "nbd");
    assert_string_equal(protocol_for_filename("nbd:host:1"), "file");
}

static void loop_body(void)
{
    char a[] = "/tmp/stillpoint-a-XXXXXX", b[] = "/tmp/stillpoint-b-XXXXXX", link[64];
    struct err err = ERR_INIT;
    int fds[] = { mkstemp(a), mkstemp(b) };

    snprintf(link, sizeof(link), "%s.link", b);
    assert_int_equal(symlink(b, link), 0);
    names = b;
    opened = 0;
    assert_null(co_node_open_file(&OPTS(b, "qcow2"), &err));
    assert_int_equal(err.code, -ELOOP);
    assert_non_null(strstr(err.text, "is its own backing file"));
    assert_int_equal(opened, 1);
    /* a on b on b, which comes under another name. */
    names = link;
    assert_null(co_node_open_file(&OPTS(a, "qcow2"), &err));
    assert_int_equal(err.code, -ELOOP);
    assert_int_equal(opened, 3);

    names = NULL;
    struct node *n = co_node_open_file(&OPTS(a, "qcow2", .node_name = "a"), &err);

    assert_non_null(n);
    assert_true(node_uses_file(n, a));
    assert_false(node_uses_file(n, b));
    co_node_unref(n);
    unlink(a);
    unlink(b);
    unlink(link);
    close(fds[0]);
    close(fds[1]);
    assert_null(co_node_open_file(&OPTS(a, "qcow2"), &err));
    assert_non_null(strstr(err.text, "No such file"));
}

static void an_image_cannot_be_its_own_backing_file(void **state)
{
    in_loop(loop_body);
}

static void endless_body(void)
{
    struct err err;

    opened = 0;
    co_test_open_fails(&err, "{'driver':'endless'}");
    assert_int_equal(err.code, -E2BIG);
    assert_non_null(strstr(err.text, "backing chain has more than 1024 images"));
    assert_true(opened >= 1024);
}

static void a_chain_without_end_is_refused(void **state)
{
    in_loop(endless_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_name_becomes_options),
        cmocka_unit_test(bad_names_are_refused),
        cmocka_unit_test(protocols_are_told_apart),
        cmocka_unit_test(an_image_cannot_be_its_own_backing_file),
        cmocka_unit_test(a_chain_without_end_is_refused),
    };

    for (size_t i = 0; i < ARRAY_SIZE(drivers); i++)
        driver_register(&drivers[i]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
