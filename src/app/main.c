/* SPDX-License-Identifier: Apache-2.0
 *
 * The program: finds the subcommand that is meant and runs it.
 */
#include "app/app.h"
#include "app/daemon.h"
#include <stdio.h>
#include <unistd.h>

struct command {
    const char *name;
    const char *help;            /* one line */
    int (*main)(int argc, char **argv);
};

static const struct command commands[] = {
    { "serve", "put disks on line over NBD", cmd_serve },
    { "backup", "back up a disk as it stands now", cmd_backup },
    { "list", "list the points of a backup set", cmd_list },
    { "forget", "remove points from a backup set", cmd_forget },
    { "prune", "remove the points that no rule keeps", cmd_prune },
    { "status", "show what a daemon has on line", cmd_status },
    { "jobs", "list the jobs of a daemon", cmd_jobs },
    { "fleece", "export a disk as it is at this moment", cmd_fleece },
    { "cancel", "cancel a job", cmd_cancel },
    { "pause", "pause a job", cmd_pause },
    { "resume", "let a paused job go on", cmd_resume },
    { "complete", "end a backup with sync=none", cmd_complete },
    { "set-speed", "limit the speed of a job", cmd_set_speed },
    { "create", "make a new image", cmd_create },
    { "check", "see whether an image is consistent, and repair it", cmd_check },
    { "convert", "copy an image to one of another kind", cmd_convert },
    { "info", "say what an image is", cmd_info },
    { "map", "show where the bytes of an image are", cmd_map },
    { "compare", "tell whether two images read the same", cmd_compare },
    { "resize", "make an image larger or smaller", cmd_resize },
    { "rebase", "let an image stand on another", cmd_rebase },
    { "commit", "write an overlay down into what it stands on", cmd_commit },
    { "snapshot", "list, take, apply and delete snapshots inside a qcow2 image", cmd_snapshot },
    { "bitmap", "change the dirty bitmaps inside a qcow2 image", cmd_bitmap },
    { "restore", "write a disk of a backup set as it was at a point", cmd_restore },
    { "open", "serve a disk of a backup set as it was at a point", cmd_open },
    { "diff", "show what changed between two points of a backup set", cmd_diff },
    { "verify", "see whether the points of a backup set can be restored", cmd_verify },
    { "daemon", "run with the options of qemu-storage-daemon", cmd_daemon },
};

static void print_help(FILE *to)
{
    fprintf(to, "Usage: stillpoint COMMAND [OPTIONS]\n"
                "Serves virtual disks over NBD and backs them up as they stood at one instant,\n"
                "while they are written.\n\n"
                "Commands:\n");
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(to, "\n'stillpoint COMMAND --help' tells more, with an example.\n");
}

static int run(const struct command *c, int argc, char **argv)
{
    int status = c->main(argc, argv);

    if (daemon_left_behind()) {
        fflush(NULL);
        _exit(status);
    }
    return status;
}

static bool is_one_of(const char *word, const char *a, const char *b, const char *c)
{
    return strcmp(word, a) == 0 || strcmp(word, b) == 0 || strcmp(word, c) == 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (is_one_of(argv[1], "--help", "-h", "help")) {
        print_help(stdout);
        return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
    }
    if (is_one_of(argv[1], "--version", "-V", "version")) {
        puts("stillpoint " STILLPOINT_VERSION);
        return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
    }
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(argv[1], commands[i].name) == 0)
            return run(&commands[i], argc - 1, argv + 1);
    }
    fprintf(stderr, "stillpoint: there is no command '%s'\n"
                    "Try 'stillpoint --help'.\n", argv[1]);
    return EXIT_USAGE;
}
