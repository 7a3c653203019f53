/* SPDX-License-Identifier: Apache-2.0
 *
 * Names in a backup set, and instants as text: there and back, and what is refused.
 */
#include "base/mem.h"
#include "co_test.h"
#include "set/name.h"
#include <time.h>

static void instants_go_to_text_and_back(void **state)
{
    static const struct {
        const char *text;
        int64_t ms;
    } cases[] = {
        { "1970-01-01T00:00:00.000Z", 0 },
        { "2026-12-01T03:57:05.123Z", 1796097425123LL },
        { "2024-02-29T23:59:59.999Z", 1709251199999LL },
    };
    char buf[SET_INSTANT_TEXT];
    int64_t ms;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_string_equal(set_instant_text(cases[i].ms, buf), cases[i].text);
        assert_true(set_instant_parse(cases[i].text, &ms));
        assert_int_equal(ms, cases[i].ms);
    }
    assert_true(set_instant_parse("2026-12-01T04:57:05.123456+01:00", &ms));
    assert_int_equal(ms, cases[1].ms);
    assert_true(set_instant_parse("2026-12-01T03:57:05Z", &ms));
    assert_int_equal(ms, cases[1].ms - 123);
}

static void what_is_no_instant_is_refused(void **state)
{
    static const char *const texts[] = {
        "", "now", "2026", "2026-12-01", "2026-12-01T03:57", "2026-12-01T03:57:05",
        "2026-13-01T03:57:05Z", "2026-12-00T03:57:05Z", "2026-12-01T24:57:05Z",
        "2026-12-01T03:60:05Z", "2026-12-01T03:57:05Zx", "2026-12-01T03:57:05+1:00",
        "1969-12-01T03:57:05Z", "-026-12-01T03:57:05Z",
    };
    int64_t ms;

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        assert_false(set_instant_parse(texts[i], &ms));
}

static void a_person_means_the_end_of_what_is_said(void **state)
{
    static const struct {
        const char *text;
        int64_t ms;
    } cases[] = {
        { "2026-12-01", 1796169599999LL },
        { "2026-12-01 03:57", 1796097479999LL },
        { "2026-12-01T03:57:05", 1796097425999LL },
        { "2026-12-01T03:57:05Z", 1796097425000LL },
    };
    int64_t ms;

    setenv("TZ", "UTC", 1);
    tzset();
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_true(set_instant_of_person(cases[i].text, &ms));
        assert_int_equal(ms, cases[i].ms);
    }
    assert_false(set_instant_of_person("2026-12-01 ", &ms));
    assert_false(set_instant_of_person("20261201T035705Z", &ms));
}

static void ids_and_files_stay_in_the_directory(void **state)
{
    static const char *const bad_ids[] = { "", "-x", "a/b", "..", "a.b", "a b", "\n" };
    static const char *const bad_files[] = { "", ".", "..", ".x", "a/b", "/a", "nbd:x", "a\nb",
                                             "set.json" };
    CLEANUP(free) char *id = set_id_of(1796097425123LL, 1);
    CLEANUP(free) char *again = set_id_of(1796097425123LL, 2);
    char too_long[SET_ID_MAX + 2];

    assert_string_equal(id, "20261201T035705Z");
    assert_string_equal(again, "20261201T035705Z-2");
    assert_true(set_id_wellformed(id) && set_id_wellformed(again));
    memset(too_long, 'a', sizeof(too_long));
    too_long[sizeof(too_long) - 1] = '\0';
    assert_false(set_id_wellformed(too_long));
    for (size_t i = 0; i < ARRAY_SIZE(bad_ids); i++)
        assert_false(set_id_wellformed(bad_ids[i]));
    for (size_t i = 0; i < ARRAY_SIZE(bad_files); i++)
        assert_false(set_file_wellformed(bad_files[i]));
    assert_true(set_file_wellformed("20261201T035705Z-disk.qcow2"));
}

static void names_tell_what_they_are_of(void **state)
{
    CLEANUP(free) char *manifest = set_manifest_name("x-1");
    CLEANUP(free) char *pending = set_pending_name("x-1");
    CLEANUP(free) char *a = set_id_of_manifest(manifest);
    CLEANUP(free) char *b = set_id_of_pending(pending);
    CLEANUP(free) char *image = set_image_name("x-1", "my disk/\xc3\xa4");

    assert_string_equal(a, "x-1");
    assert_string_equal(b, "x-1");
    assert_null(set_id_of_manifest(pending));
    assert_null(set_id_of_pending(manifest));
    assert_null(set_id_of_manifest("set.json"));
    assert_null(set_id_of_manifest(".json"));
    assert_string_equal(image, "x-1-my%20disk%2F%C3%A4.qcow2");
    assert_true(set_file_wellformed(image));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(instants_go_to_text_and_back),
        cmocka_unit_test(what_is_no_instant_is_refused),
        cmocka_unit_test(a_person_means_the_end_of_what_is_said),
        cmocka_unit_test(ids_and_files_stay_in_the_directory),
        cmocka_unit_test(names_tell_what_they_are_of),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
