/* SPDX-License-Identifier: Apache-2.0
 *
 * Manifests: there and back, what a later version may add, and hostile ones. Each of these is
 * the good one with one place changed, so that nothing else can be why it is refused.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "co_test.h"
#include "set/manifest.h"
#include "set/name.h"
#include <stdio.h>

#define UUID "3b241101-e2bb-4255-8caf-4136c566a962"

static const char good[] =
    "{\"format\": 1, \"set\": \"" UUID "\", \"id\": \"20261201T035705Z\", \"sequence\": 7, "
    "\"instant\": \"2026-12-01T03:57:05.123Z\", \"duration-ms\": 12, \"version\": \"0.1\", "
    "\"quiesce\": {\"held\": true, \"file-systems\": 2, \"frozen-ms\": 50}, "
    "\"disks\": [{\"name\": \"data\", \"identity\": \"/d.raw\", \"size\": 1048576, "
    "\"file\": \"a-data.qcow2\", \"format\": \"qcow2\", \"kind\": \"incremental\", "
    "\"reason\": \"why\", \"parent\": \"20261130T035705Z\", \"bytes\": 4096, \"bitmap\": \"b\", "
    "\"digest\": {\"algorithm\": \"blake3\", \"file\": \"a-data.digests\", "
    "\"leaf-size\": 65536, \"root\": \"00ff\"}, "
    "\"guest-latency\": {\"writes\": 1, \"delayed\": 1, \"p50-ns\": 1, \"p99-ns\": 2, "
    "\"p999-ns\": 3, \"max-ns\": 4}}, "
    "{\"name\": \"log\", \"identity\": \"/l.raw\", \"size\": 512, \"file\": \"a-log.qcow2\", "
    "\"format\": \"qcow2\", \"kind\": \"full\", \"reason\": \"first\", \"bytes\": 512}]}";

static bool parses(const char *text, struct err *err)
{
    struct set_manifest m;

    if (!set_manifest_parse(text, strlen(text), &m, err))
        return false;
    set_manifest_done(&m);
    return true;
}

/* The good one with @from, which it has, made @to. */
static char *changed(const char *from, const char *to)
{
    const char *at = strstr(good, from);

    assert_non_null(at);
    return xasprintf("%.*s%s%s", (int)(at - good), good, to, at + strlen(from));
}

static void one_goes_there_and_back(void **state)
{
    struct set_manifest m, again, again2;
    struct err err = ERR_INIT;

    assert_true(set_manifest_parse(good, strlen(good), &m, &err));
    assert_int_equal(m.sequence, 7);
    assert_int_equal(m.instant, 1796097425123LL);
    assert_int_equal(set_manifest_n_disks(&m), 2);
    assert_int_equal(set_manifest_bytes(&m), 4608);
    assert_string_equal(set_manifest_kind(&m), "mixed");
    assert_string_equal(set_manifest_find_disk(&m, "data")->digest.root, "00ff");
    assert_false(set_manifest_find_disk(&m, "log")->has_parent);
    assert_null(set_manifest_find_disk(&m, "none"));

    CLEANUP(free) char *text = set_manifest_text(&m);
    CLEANUP(json_decref) json_t *a = schema_parse_json(good, strlen(good), &err);
    CLEANUP(json_decref) json_t *b = schema_parse_json(text, strlen(text), &err);

    assert_true(!m.has_checksum && json_object_del(b, "checksum") == 0);
    assert_true(json_equal(a, b));
    assert_true(set_manifest_parse(text, strlen(text), &again, &err));
    assert_int_equal(again.instant, m.instant);
    assert_true(again.has_checksum);
    /* What is written has a checksum that every changed bit shows in: it does not parse, or
     * has lost its checksum. */
    for (size_t bit = 0, n = strlen(text); bit < 8 * n; bit++) {
        text[bit / 8] ^= (char)(1 << bit % 8);
        if (set_manifest_parse(text, n, &again2, &err)) {
            assert_false(again2.has_checksum);
            set_manifest_done(&again2);
        }
        text[bit / 8] ^= (char)(1 << bit % 8);
    }
    set_manifest_done(&m);
    set_manifest_done(&again);
}

static void what_a_later_version_adds_is_ignored(void **state)
{
    CLEANUP(free) char *top = changed("\"sequence\"", "\"new\": [1, {\"x\": 2}], \"sequence\"");
    CLEANUP(free) char *disk = changed("\"kind\"", "\"new\": null, \"kind\"");
    CLEANUP(free) char *format = changed("\"format\": 1", "\"format\": 2");
    struct err err = ERR_INIT;

    assert_true(parses(top, &err) && parses(disk, &err));
    assert_false(parses(format, &err));
    assert_non_null(strstr(err.text, "a later version"));
}

static void hostile_ones_are_refused(void **state)
{
    static const char *const changes[][2] = {
        { "\"set\": \"3b24", "\"set\": \"../x" },
        { "\"id\": \"2026", "\"id\": \"../" },
        { "\"id\": \"20261201T035705Z\"", "\"id\": \"\"" },
        { "\"id\": \"20261201T035705Z\"", "\"id\": 5" },
        { "\"sequence\": 7", "\"sequence\": -7" },
        { "\"sequence\": 7", "\"sequence\": 1e400" },
        { "\"sequence\": 7", "\"sequence\": 7, \"sequence\": 8" },
        { "2026-12-01T03:57:05.123Z", "yesterday" },
        { "\"disks\": [", "\"disks\": {}, \"x\": [" },
        { "\"disks\": [", "\"disks\": [], \"x\": [" },
        { "\"file\": \"a-data.qcow2\"", "\"file\": \"../a\"" },
        { "\"file\": \"a-data.qcow2\"", "\"file\": \"/etc/passwd\"" },
        { "\"file\": \"a-data.qcow2\"", "\"file\": \".lock\"" },
        { "\"file\": \"a-data.qcow2\"", "\"file\": \"set.json\"" },
        { "\"file\": \"a-data.qcow2\"", "\"file\": \"nbd:h:1\"" },
        { "\"file\": \"a-data.qcow2\"", "\"file\": \"a\\u0000b\"" },
        { "\"file\": \"a-data.qcow2\"", "\"file\": \"a-log.qcow2\"" },
        { "\"file\": \"a-data.digests\"", "\"file\": \"../d\"" },
        { "\"leaf-size\": 65536", "\"leaf-size\": 0" },
        { "\"leaf-size\": 65536", "\"leaf-size\": 65535" },
        { "\"leaf-size\": 65536", "\"leaf-size\": 4611686018427387904" },
        { "\"size\": 1048576", "\"size\": -1" },
        { "\"size\": 1048576", "\"size\": \"1M\"" },
        { "\"format\": \"qcow2\"", "\"format\": \"raw\"" },
        { "\"kind\": \"incremental\"", "\"kind\": \"other\"" },
        { "\"parent\": \"2026", "\"parent\": \"../" },
        { "\"name\": \"data\"", "\"name\": \"\"" },
        { "\"name\": \"data\"", "\"name\": \"log\"" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        CLEANUP(free) char *text = changed(changes[i][0], changes[i][1]);
        struct err err = ERR_INIT;

        if (parses(text, &err))
            fail_msg("%s passed", changes[i][1]);
        assert_true(err.code < 0 && *err.text);
    }
}

static void what_is_too_large_is_refused(void **state)
{
    CLEANUP(free) char *blanks = xmalloc(LIMIT_SET_MANIFEST_BYTES + 1);
    CLEANUP_STRBUF struct strbuf many = STRBUF_INIT, deep = STRBUF_INIT;
    struct set_manifest m;
    struct err err = ERR_INIT;

    memset(blanks, ' ', LIMIT_SET_MANIFEST_BYTES + 1);
    assert_false(set_manifest_parse(blanks, LIMIT_SET_MANIFEST_BYTES + 1, &m, &err));
    assert_int_equal(err.code, -EFBIG);

    strbuf_addn(&many, good, (size_t)(strstr(good, "{\"name\"") - good));
    for (unsigned i = 0; i <= LIMIT_SET_DISKS; i++)
        strbuf_addf(&many, "%s{\"name\": \"d%u\", \"identity\": \"\", \"size\": 0, "
                    "\"file\": \"f%u\", \"format\": \"qcow2\", \"kind\": \"full\", "
                    "\"reason\": \"\", \"bytes\": 0}", i ? ", " : "", i, i);
    strbuf_add(&many, "]}");
    assert_false(parses(strbuf_text(&many), &err));
    assert_non_null(strstr(err.text, "1025 disks"));

    for (unsigned i = 0; i < 100000; i++)
        strbuf_add(&deep, "[");
    assert_false(parses(strbuf_text(&deep), &err));
}

/* Every prefix, and every byte turned: an answer, and nothing that the sanitizers see. */
static void rubbish_gets_an_answer(void **state)
{
    size_t len = strlen(good);

    for (size_t i = 0; i < len; i++) {
        CLEANUP(free) char *text = xstrdup(good);
        struct err err = ERR_INIT;

        text[i] = '\0';
        assert_false(parses(text, &err));
        text[i] = (char)(good[i] ^ 0x11);
        (void)parses(text, &err);
        text[i] = (char)(good[i] ^ 0x82);
        (void)parses(text, &err);
    }
}

static void a_description_has_a_number_of_its_own(void **state)
{
    static const char *const bad[] = { "", "{}", "[]", "{\"type\": \"x\"}",
        "{\"type\": \"stillpoint backup set\", \"format\": 1, \"id\": \"..\"}",
        "{\"type\": \"stillpoint backup set\", \"format\": 2, \"id\": \"" UUID "\"}" };
    struct err err = ERR_INIT;
    CLEANUP(free) char *a = set_description_new(&err), *b = set_description_new(&err);
    CLEANUP(free) char *ua = set_description_parse(a, strlen(a), &err);
    CLEANUP(free) char *ub = set_description_parse(b, strlen(b), &err);

    assert_true(set_uuid_wellformed(ua) && set_uuid_wellformed(ub));
    assert_string_not_equal(ua, ub);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_null(set_description_parse(bad[i], strlen(bad[i]), &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_goes_there_and_back),
        cmocka_unit_test(what_a_later_version_adds_is_ignored),
        cmocka_unit_test(hostile_ones_are_refused),
        cmocka_unit_test(what_is_too_large_is_refused),
        cmocka_unit_test(rubbish_gets_an_answer),
        cmocka_unit_test(a_description_has_a_number_of_its_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
