/* SPDX-License-Identifier: Apache-2.0
 *
 * Options from a command's table.
 */
#include "app/cli.h"
#include "co_test.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static const char *const colours[] = { "red", "green", NULL };

struct values {
    bool loud;
    const char *name;
    struct cli_list dirs;
    uint64_t size, rate, number;
    int colour;
    int first, status;
};

/* Parse words that end with NULL. */
static bool parse(struct values *v, const char *const *words)
{
    const struct cli_option options[] = {
        { "loud", 'l', CLI_FLAG, &v->loud, NULL, "help" },
        { "name", 'n', CLI_TEXT, &v->name, "NAME", "help" },
        { "dir", 0, CLI_LIST, &v->dirs, "DIR", "help" },
        { "size", 0, CLI_SIZE, &v->size, "SIZE", "help", .max = MiB },
        { "rate", 0, CLI_RATE, &v->rate, "RATE", "help" },
        { "number", 0, CLI_NUMBER, &v->number, "N", "help", .max = 9 },
        { "colour", 0, CLI_CHOICE, &v->colour, NULL, "help", colours },
        { 0 },
    };
    const struct cli_command command = {
        "paint", "WALL [ROOF]", 1, 2, "Paints.", options, "  stillpoint paint wall",
    };
    char *argv[128] = { (char *)"paint" };
    int argc = 1;

    for (; *words; words++)
        argv[argc++] = (char *)*words;
    return cli_parse(&command, argc, argv, &v->first, &v->status);
}
#define PARSE(v, ...) parse(v, (const char *const[]){ __VA_ARGS__, NULL })

static void every_kind_of_option(void **state)
{
    struct values v = { .colour = -1 };

    assert_true(PARSE(&v, "-l", "--name=x", "--dir", "a", "--dir=b", "--size", "64k", "--rate",
                      "1M/s", "--number", "9", "--colour", "green", "wall"));
    assert_true(v.loud);
    assert_string_equal(v.name, "x");
    assert_int_equal(v.dirs.n, 2);
    assert_string_equal(v.dirs.items[1], "b");
    assert_int_equal(v.size, 64 * KiB);
    assert_int_equal(v.rate, MiB);
    assert_int_equal(v.number, 9);
    assert_int_equal(v.colour, 1);
    assert_int_equal(v.first, 14);
}

static void options_may_stand_anywhere(void **state)
{
    struct values v = { 0 };

    assert_true(PARSE(&v, "wall", "-l", "roof", "-nx"));
    assert_true(v.loud);
    assert_string_equal(v.name, "x");
    assert_int_equal(v.first, 3);
    /* Afresh each time, and nothing behind "--" is an option. */
    v = (struct values){ 0 };
    assert_true(PARSE(&v, "--", "-l"));
    assert_false(v.loud);
}

static void what_is_not_given_stays(void **state)
{
    struct values v = { .name = "default", .colour = 7 };

    assert_true(PARSE(&v, "wall"));
    assert_string_equal(v.name, "default");
    assert_int_equal(v.colour, 7);
}

static void misuse_is_status_2(void **state)
{
    static const char *const bad[][3] = {
        { "--nonsense", "wall" }, { "-x", "wall" },           { "wall", "--name" },
        { "wall", "-n" },         { "--loud=1", "wall" },     { "--size=2M", "wall" },
        { "--size=", "wall" },    { "--number=10", "wall" },  { "--number=-1", "wall" },
        { "--number= 1", "wall" }, { "--colour=blue", "wall" }, { "--rate=1MB", "wall" },
        { "--number=99999999999999999999", "wall" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct values v = { 0 };

        assert_false(PARSE(&v, bad[i][0], bad[i][1]));
        assert_int_equal(v.status, EXIT_USAGE);
    }

    struct values v = { 0 };

    assert_false(parse(&v, (const char *const[]){ NULL }));
    assert_int_equal(v.status, EXIT_USAGE);
    assert_false(PARSE(&v, "a", "b", "c"));
    assert_int_equal(v.status, EXIT_USAGE);
}

static void a_list_has_an_end(void **state)
{
    const char *words[CLI_LIST_MAX + 3] = { "wall" };
    struct values v = { 0 };

    for (unsigned i = 1; i <= CLI_LIST_MAX; i++)
        words[i] = "--dir=d";
    assert_true(parse(&v, words));
    assert_int_equal(v.dirs.n, CLI_LIST_MAX);
    words[CLI_LIST_MAX + 1] = "--dir=d";
    v = (struct values){ 0 };
    assert_false(parse(&v, words));
    assert_int_equal(v.status, EXIT_USAGE);
}

static void help_is_no_failure(void **state)
{
    struct values v = { .status = -1 };

    assert_false(PARSE(&v, "--help"));
    assert_int_equal(v.status, EXIT_OK);
}

static void the_control_socket_may_come_from_the_environment(void **state)
{
    unsetenv("STILLPOINT_CONTROL");
    assert_null(cli_control(NULL));
    setenv("STILLPOINT_CONTROL", "", 1);
    assert_null(cli_control(NULL));
    setenv("STILLPOINT_CONTROL", "env", 1);
    assert_string_equal(cli_control(NULL), "env");
    assert_string_equal(cli_control("given"), "given");
    assert_null(cli_control(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_option),
        cmocka_unit_test(options_may_stand_anywhere),
        cmocka_unit_test(what_is_not_given_stays),
        cmocka_unit_test(misuse_is_status_2),
        cmocka_unit_test(a_list_has_an_end),
        cmocka_unit_test(help_is_no_failure),
        cmocka_unit_test(the_control_socket_may_come_from_the_environment),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
