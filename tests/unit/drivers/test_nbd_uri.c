/* SPDX-License-Identifier: Apache-2.0
 *
 * NBD URIs to options and back.
 */
#include "drivers/nbd_uri.h"
#include "drivers_test.h"

static void expect_options(const char *uri, const char *want)
{
    struct err err = ERR_INIT;
    json_t *json = nbd_uri_parse(uri, &err);

    if (!json)
        fail_msg("%s", err.text);

    char *text = json_dumps(json, JSON_COMPACT | JSON_SORT_KEYS);

    assert_string_equal(text, want);
    free(text);
    json_decref(json);
}

static void expect_refused(const char *uri, const char *words)
{
    struct err err = ERR_INIT;

    assert_null(nbd_uri_parse(uri, &err));
    assert_true(err.code < 0);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

static void uris_become_options(void **state)
{
    expect_options("nbd://example.org:123/disk",
                   "{\"export\":\"disk\",\"server\":{\"host\":\"example.org\",\"port\":\"123\","
                   "\"type\":\"inet\"}}");
    expect_options("nbd://example.org",
                   "{\"export\":\"\",\"server\":{\"host\":\"example.org\",\"port\":\"10809\","
                   "\"type\":\"inet\"}}");
    expect_options("nbd:///a/b%20c",
                   "{\"export\":\"a/b c\",\"server\":{\"host\":\"localhost\",\"port\":\"10809\","
                   "\"type\":\"inet\"}}");
    expect_options("nbd://[::1]:99/",
                   "{\"export\":\"\",\"server\":{\"host\":\"::1\",\"port\":\"99\","
                   "\"type\":\"inet\"}}");
    expect_options("nbd+unix:///?socket=/run/n%62d.sock",
                   "{\"export\":\"\",\"server\":{\"path\":\"/run/nbd.sock\",\"type\":\"unix\"}}");
    expect_options("nbd+unix:///x?socket=relative",
                   "{\"export\":\"x\",\"server\":{\"path\":\"relative\",\"type\":\"unix\"}}");
}

static void bad_uris_are_refused(void **state)
{
    expect_refused("nbd", "no '://'");
    expect_refused("http://x", "must begin with");
    expect_refused("nbds://x", "TLS");
    expect_refused("nbds+unix:///x?socket=y", "TLS");
    expect_refused("nbd://user@x", "user names");
    expect_refused("nbd://[::1", "IPv6");
    expect_refused("nbd://[::1]x", "IPv6");
    expect_refused("nbd://x/%4", "hexadecimal");
    expect_refused("nbd://x/%zz", "hexadecimal");
    expect_refused("nbd://x/%00", "hexadecimal");
    expect_refused("nbd://x/%", "hexadecimal");
    expect_refused("nbd://x/#f", "fragment");
    expect_refused("nbd://x/?socket=y", "nbd+unix:// only");
    expect_refused("nbd://x/?tls-certificates=y", "tls-certificates");
    expect_refused("nbd+unix:///x", "must look like");
    expect_refused("nbd+unix:///x?socket=", "must look like");
    expect_refused("nbd+unix://host/x?socket=y", "must look like");
    expect_refused("nbd+unix:///x?socket=y&socket=z", "two sockets");
    expect_refused("nbd+unix:///x?socket=%ff", "UTF-8");
    expect_refused("nbd://x/%ff", "UTF-8");
}

static void addresses_become_uris(void **state)
{
    static const char *const uris[] = {
        "nbd+unix:///a%20b/c?socket=/run/x%26y",
        "nbd+unix:///?socket=/run/%C3%A4",
    };
    CLEANUP(free) char *inet = nbd_uri_for_inet("::1", "10809", "d%");
    CLEANUP(free) char *plain = nbd_uri_for_inet("example.org", "1", "");

    assert_string_equal(inet, "nbd://[::1]:10809/d%25");
    assert_string_equal(plain, "nbd://example.org:1");
    for (size_t i = 0; i < ARRAY_SIZE(uris); i++) {
        json_t *json = nbd_uri_parse(uris[i], NULL);
        json_t *server = json_object_get(json, "server");
        CLEANUP(free) char *back =
            nbd_uri_for_unix(json_string_value(json_object_get(server, "path")),
                             json_string_value(json_object_get(json, "export")));

        assert_string_equal(back, uris[i]);
        json_decref(json);
    }
}

/* Whatever the bytes, it answers. */
static void any_bytes_give_options_or_an_error(void **state)
{
    static const char pieces[] = "nbd+unix://[]:/?&=%#@socket=20aF\xff\xc3\xa4";
    uint64_t rnd = 1;

    for (int i = 0; i < 200000; i++) {
        char uri[40] = "nbd+unix://";
        size_t at = test_random(&rnd, 2) ? 11 : test_random(&rnd, 11);
        struct err err = ERR_INIT;

        for (; at < sizeof(uri) - 1 && test_random(&rnd, 20); at++)
            uri[at] = pieces[test_random(&rnd, sizeof(pieces) - 1)];
        uri[at] = '\0';

        json_t *json = nbd_uri_parse(uri, &err);

        assert_true(json || err.code < 0);
        json_decref(json);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(uris_become_options),
    cmocka_unit_test(bad_uris_are_refused),
    cmocka_unit_test(addresses_become_uris),
    cmocka_unit_test(any_bytes_give_options_or_an_error),
};

DRIVERS_TEST_MAIN(tests)
