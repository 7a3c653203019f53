/* SPDX-License-Identifier: Apache-2.0
 *
 * How commands for people take options and say what is wrong. A command
 * describes itself in a table; parsing it, --help and the words for misuse come
 * from there.
 */
#ifndef APP_CLI_H
#define APP_CLI_H

#include "app/app.h"
#include "base/err.h"
#include "base/schema.h"

enum cli_kind {
    CLI_FLAG,      /* bool */
    CLI_TEXT,      /* const char * */
    CLI_LIST,      /* struct cli_list: may be given several times */
    CLI_SIZE,      /* uint64_t, bytes: "20G", "64k" */
    CLI_RATE,      /* uint64_t, bytes a second: a size, "/s" may follow */
    CLI_NUMBER,    /* uint64_t */
    CLI_CHOICE,    /* int: index into .choices */
};

#define CLI_LIST_MAX 64

struct cli_list {
    const char *items[CLI_LIST_MAX];   /* argv's */
    size_t n;
};

/* What the option was not given for stays as it was. */
struct cli_option {
    const char *name;        /* without dashes; NULL ends the table */
    char letter;             /* short form; 0: none */
    enum cli_kind kind;
    void *to;
    const char *value;       /* what --help calls the value; not for flags */
    const char *help;
    const char *const *choices;   /* NULL-terminated */
    uint64_t max;            /* of a size, rate or number; 0: no bound */
};

struct cli_command {
    const char *name;
    const char *operands;    /* as in the usage line: "SOURCE TARGET" */
    int min_operands, max_operands;   /* max -1: any number */
    const char *about;       /* what it does, in sentences of whole lines */
    const struct cli_option *options;
    const char *example;     /* lines */
};

/* Take @argv apart. True: go on, the operands are argv[*ret_first..argc-1]. False: the
 * command is over with *ret_status (--help was answered, or misuse was told). */
MUST_CHECK bool cli_parse(const struct cli_command *c, int argc, char **argv, int *ret_first,
                          int *ret_status);

/* Tell misuse, and where help is; gives EXIT_USAGE. */
int cli_misuse(const char *command, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Tell what went wrong; gives EXIT_FAILED. */
int cli_fail(const char *command, const struct err *err);
int cli_failf(const char *command, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Put out @json for programs, indented, and let go of it. Gives an exit status. */
int cli_put_json(const char *command, json_t *json);

/* See standard output to its end; a command that has written to it returns this,
 * so that a full disk or a closed pipe is not taken for success. */
int cli_end_output(const char *command);

/* The option --image-dir, for every command that opens chains. */
#define CLI_IMAGE_DIR(list) \
    { "image-dir", 0, CLI_LIST, list, "DIR", \
      "images may name backing files below it, not only below their own directory" }

/* Let images name backing files below these directories. Before there are loops. */
MUST_CHECK bool cli_allow_image_dirs(const struct cli_list *dirs, struct err *err);

/* Tell that a control socket is needed; gives EXIT_USAGE. */
int cli_no_control(const char *command);

/* The control socket: @given, else what $STILLPOINT_CONTROL says. NULL if that is empty. */
const char *cli_control(const char *given);

#endif
