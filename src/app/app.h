/* SPDX-License-Identifier: Apache-2.0
 *
 * The program's subcommands: a function each, in a file each, and what they
 * share. main.c has the table of them.
 *
 * A command gets the arguments behind the program's name: argv[0] is the
 * command's own. It returns the exit status of the process.
 */
#ifndef APP_APP_H
#define APP_APP_H

#include "base/base.h"

enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_CANCELLED = 130,      /* as a shell says of a program that Ctrl-C ended */
};

int cmd_daemon(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_backup(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_jobs(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_forget(int argc, char **argv);
int cmd_prune(int argc, char **argv);
int cmd_fleece(int argc, char **argv);
int cmd_cancel(int argc, char **argv);
int cmd_pause(int argc, char **argv);
int cmd_resume(int argc, char **argv);
int cmd_complete(int argc, char **argv);
int cmd_set_speed(int argc, char **argv);
int cmd_create(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_map(int argc, char **argv);
int cmd_snapshot(int argc, char **argv);
int cmd_bitmap(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_resize(int argc, char **argv);
int cmd_rebase(int argc, char **argv);
int cmd_commit(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_restore(int argc, char **argv);
int cmd_open(int argc, char **argv);
int cmd_diff(int argc, char **argv);

#endif
