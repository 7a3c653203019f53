/* SPDX-License-Identifier: Apache-2.0
 *
 * Options of commands for people: getopt_long over a command's table, --help
 * from the same table.
 */
#include "app/cli.h"
#include "app/human.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "drivers/image_dirs.h"
#include <getopt.h>
#include <stdio.h>

#define OPTION_MAX 32
#define CONTROL_VARIABLE "STILLPOINT_CONTROL"

static void complain(const char *command, const char *text)
{
    /* One write, so that lines of several processes do not mix. */
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    strbuf_addf(&sb, "stillpoint %s: %s\n", command, text);
    fflush(stdout);
    fputs(strbuf_text(&sb), stderr);
}

int cli_misuse(const char *command, const char *fmt, ...)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;
    va_list ap;

    va_start(ap, fmt);
    strbuf_vaddf(&sb, fmt, ap);
    va_end(ap);
    strbuf_addf(&sb, "\nTry 'stillpoint %s --help'.", command);
    complain(command, strbuf_text(&sb));
    return EXIT_USAGE;
}

int cli_fail(const char *command, const struct err *err)
{
    complain(command, err->text);
    return EXIT_FAILED;
}

int cli_failf(const char *command, const char *fmt, ...)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;
    va_list ap;

    va_start(ap, fmt);
    strbuf_vaddf(&sb, fmt, ap);
    va_end(ap);
    complain(command, strbuf_text(&sb));
    return EXIT_FAILED;
}

int cli_put_json(const char *command, json_t *json)
{
    CLEANUP(free) char *text = json_dumps(json, JSON_INDENT(4) | JSON_ENCODE_ANY);

    json_decref(json);
    if (!text)
        return cli_failf(command, "out of memory");
    puts(text);
    return cli_end_output(command);
}

int cli_end_output(const char *command)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        return cli_failf(command, "cannot write to standard output: %s", strerror(errno));
    return EXIT_OK;
}

bool cli_allow_image_dirs(const struct cli_list *dirs, struct err *err)
{
    for (size_t i = 0; i < dirs->n; i++) {
        if (!image_dirs_allow(dirs->items[i], err))
            return false;
    }
    return true;
}

int cli_no_control(const char *command)
{
    return cli_misuse(command, "which daemon? Say --control PATH, or set $" CONTROL_VARIABLE);
}

const char *cli_control(const char *given)
{
    const char *path = given ? given : getenv(CONTROL_VARIABLE);

    return path && *path ? path : NULL;
}

/* ---- help ------------------------------------------------------------------------ */

static void add_choices(struct strbuf *sb, const char *const *choices, const char *between)
{
    for (int i = 0; choices[i]; i++)
        strbuf_addf(sb, "%s%s", i ? between : "", choices[i]);
}

/* Wrap help to the right of its option. */
static void add_help(struct strbuf *sb, const char *help, size_t column)
{
    const size_t indent = 28, width = 79 - indent;

    if (column + 2 > indent) {
        strbuf_addc(sb, '\n');
        column = 0;
    }
    strbuf_addf(sb, "%*s", (int)(indent - column), "");
    while (strlen(help) > width) {
        size_t n = width;

        while (n > 1 && help[n] != ' ')
            n--;
        strbuf_addn(sb, help, n);
        strbuf_addf(sb, "\n%*s", (int)indent, "");
        help += n + 1;
    }
    strbuf_addf(sb, "%s\n", help);
}

static void add_option_help(struct strbuf *sb, const struct cli_option *o)
{
    size_t start = sb->len;

    if (o->letter)
        strbuf_addf(sb, "  -%c, --%s", o->letter, o->name);
    else
        strbuf_addf(sb, "      --%s", o->name);
    if (o->kind == CLI_CHOICE) {
        strbuf_addc(sb, ' ');
        add_choices(sb, o->choices, "|");
    } else if (o->kind != CLI_FLAG) {
        strbuf_addf(sb, " %s", o->value);
    }
    add_help(sb, o->help, sb->len - start);
}

static void print_help(const struct cli_command *c)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    strbuf_addf(&sb, "Usage: stillpoint %s %s\n\n%s\n\nOptions:\n", c->name, c->operands,
                c->about);
    for (const struct cli_option *o = c->options; o && o->name; o++)
        add_option_help(&sb, o);
    strbuf_addf(&sb, "      --help                this text\n\nExample:\n%s\n", c->example);
    fputs(strbuf_text(&sb), stdout);
}

/* ---- values ------------------------------------------------------------------------ */

static bool parse_number(const char *text, uint64_t *ret, struct err *err)
{
    char *end;

    errno = 0;
    *ret = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno)
        return err_set(err, -EINVAL, "'%s' is not a number", text);
    return true;
}

static bool parse_quantity(const struct cli_option *o, const char *text, struct err *err)
{
    uint64_t v;
    bool ok = o->kind == CLI_SIZE ? schema_parse_size(text, &v, err)
            : o->kind == CLI_RATE ? human_parse_rate(text, &v, err)
                                  : parse_number(text, &v, err);

    if (ok && o->max && v > o->max)
        ok = err_set(err, -ERANGE, "'%s' is more than %llu", text, (unsigned long long)o->max);
    if (ok)
        *(uint64_t *)o->to = v;
    else
        err_prefix(err, "--%s: ", o->name);
    return ok;
}

static bool parse_choice(const struct cli_option *o, const char *text, struct err *err)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    for (int i = 0; o->choices[i]; i++) {
        if (strcmp(o->choices[i], text) == 0) {
            *(int *)o->to = i;
            return true;
        }
    }
    add_choices(&sb, o->choices, ", ");
    return err_set(err, -EINVAL, "--%s cannot be '%s': it is one of %s", o->name, text,
                   strbuf_text(&sb));
}

static bool take_option(const struct cli_option *o, const char *text, struct err *err)
{
    struct cli_list *list = o->to;

    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->to = true;
        return true;
    case CLI_TEXT:
        *(const char **)o->to = text;
        return true;
    case CLI_LIST:
        if (list->n == CLI_LIST_MAX)
            return err_set(err, -E2BIG, "--%s may be given %d times at most", o->name,
                           CLI_LIST_MAX);
        list->items[list->n++] = text;
        return true;
    case CLI_SIZE:
    case CLI_RATE:
    case CLI_NUMBER:
        return parse_quantity(o, text, err);
    case CLI_CHOICE:
        return parse_choice(o, text, err);
    }
    abort();
}

/* ---- parsing ------------------------------------------------------------------------ */

/* What getopt calls an option: its letter, or from here on its place in the table. */
#define OPTION_BASE 256

struct getopt_tables {
    struct option longs[OPTION_MAX + 2];
    char shorts[2 * OPTION_MAX + 2];
    int help;              /* what getopt calls --help */
};

static void make_tables(const struct cli_command *c, struct getopt_tables *t)
{
    char *s = t->shorts;
    int n = 0;

    memset(t, 0, sizeof(*t));
    *s++ = ':';            /* tell a missing value from an unknown option */
    for (const struct cli_option *o = c->options; o && o->name; o++, n++) {
        bool value = o->kind != CLI_FLAG;

        assert(n < OPTION_MAX);
        t->longs[n] = (struct option){ o->name, value, NULL, OPTION_BASE + n };
        if (o->letter) {
            assert(!strchr(t->shorts, o->letter));
            *s++ = o->letter;
            if (value)
                *s++ = ':';
        }
    }
    t->help = OPTION_BASE + n;
    t->longs[n] = (struct option){ "help", no_argument, NULL, t->help };
}

static int misused_option(const struct cli_command *c, const struct getopt_tables *t, int got,
                          const char *word)
{
    if (optopt >= OPTION_BASE)
        return cli_misuse(c->name, got == ':' ? "--%s needs a value" : "--%s takes no value",
                          t->longs[optopt - OPTION_BASE].name);
    if (optopt)
        return cli_misuse(c->name, got == ':' ? "-%c needs a value" : "there is no option -%c",
                          optopt);
    return cli_misuse(c->name, "there is no option %s", word);
}

static bool check_operands(const struct cli_command *c, int n, int *ret_status)
{
    if (n >= c->min_operands && (c->max_operands < 0 || n <= c->max_operands))
        return true;
    *ret_status = cli_misuse(c->name, "%s: it takes %s",
                             n < c->min_operands ? "something is missing" : "too many arguments",
                             c->operands);
    return false;
}

static const struct cli_option *find_option(const struct cli_command *c, int got)
{
    const struct cli_option *o = c->options;

    if (got >= OPTION_BASE)
        return o + (got - OPTION_BASE);
    while (o->letter != got)
        o++;
    return o;
}

bool cli_parse(const struct cli_command *c, int argc, char **argv, int *ret_first,
               int *ret_status)
{
    struct getopt_tables t;
    struct err err = ERR_INIT;

    make_tables(c, &t);
    optind = 0;            /* afresh, whatever main has done with it */
    for (int got; (got = getopt_long(argc, argv, t.shorts, t.longs, NULL)) != -1;) {
        if (got == t.help) {
            print_help(c);
            *ret_status = cli_end_output(c->name);
            return false;
        }
        if (got == ':' || got == '?') {
            *ret_status = misused_option(c, &t, got, argv[optind - 1]);
            return false;
        }
        if (!take_option(find_option(c, got), optarg, &err)) {
            *ret_status = cli_misuse(c->name, "%s", err.text);
            return false;
        }
    }
    *ret_first = optind;
    return check_operands(c, argc - optind, ret_status);
}
