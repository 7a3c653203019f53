/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint restore: a disk of a backup set, as it was at a point, to a file, device or NBD
 * export. A new file has its name only when it is whole (target_name.c).
 */
#include "app/cli.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/restore_run.h"
#include "base/mem.h"
#include "loop/loop.h"
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct restore_command {
    struct restore run;
    const char *dir, *at, *disk, *name;
    int format, style;                 /* -1: by the name */
    bool force, in_place;
    struct image_options options;
    struct set_catalog catalog;
    struct target_name target;
    struct watch watch;
    uint64_t began;                    /* loop_now time */
};

static int tell_done(struct restore_command *c)
{
    double seconds = (double)MAX(loop_now() - c->began, NSEC_PER_MSEC) / NSEC_PER_SEC;
    char read[HUMAN_TEXT], written[HUMAN_TEXT], rate[HUMAN_TEXT];
    const struct set_image *im = c->run.image;

    if (c->run.unverified)
        fprintf(stderr, "stillpoint restore: the point has no digests: what was restored was not "
                "verified\n");
    progress_event(&c->watch.progress,
                   json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:b, s:f}", "event", "completed",
                             "point", im->point->m.id, "disk", im->disk->name, "target",
                             schema_json_str(c->target.path), "size",
                             (json_int_t)im->disk->size, "written",
                             (json_int_t)c->run.written, "verified", !c->run.unverified,
                             "seconds", seconds));
    if (progress_for_people(&c->watch.progress))
        printf("%s: disk %s of %s, %s read, %s written, %s/s\n", c->name, im->disk->name,
               im->point->m.instant_text, human_size(c->run.read, read),
               human_size(c->run.written, written),
               human_size((uint64_t)((double)c->run.read / seconds), rate));
    return cli_end_output("restore");
}

static int tell_failed(struct restore_command *c)
{
    bool started = c->run.target.started;
    bool gone = c->run.target.existing ? !started
                                       : target_name_discard(&c->target, started);

    progress_clear(&c->watch.progress);
    progress_event(&c->watch.progress,
                   json_pack("{s:s, s:o}", "event",
                             watch_cancelled(&c->watch) ? "cancelled" : "failed", "error",
                             schema_json_str(c->run.err.text)));
    if (watch_cancelled(&c->watch)) {
        cli_failf("restore", gone ? "cancelled; nothing was left behind"
                                  : "cancelled; '%s' holds half of it", c->name);
        return EXIT_CANCELLED;
    }
    cli_fail("restore", &c->run.err);
    if (!gone)
        fprintf(stderr, "'%s' holds half of it\n", c->name);
    return EXIT_FAILED;
}

/* What is there is not overwritten unless the user says so. */
static bool check_target(struct restore_command *c)
{
    struct stat st;
    bool uri = image_name_is_uri(c->name);
    bool there = uri || stat(c->name, &st) == 0;

    if (c->in_place && !there)
        return err_errno(&c->run.err, -errno, "'%s'", c->name);
    if (c->in_place)
        return uri || image_format_to_read(c->name, c->format < 0 ? NULL
                                                                  : image_formats[c->format],
                                           &c->run.err);
    return !there || c->force ||
           err_set(&c->run.err, -EEXIST, "'%s' is there already: choose another target, or say "
                   "--force to overwrite it, or --in-place to write what differs", c->name);
}

static int run(struct restore_command *c)
{
    const struct set_point *p = set_catalog_find(&c->catalog, c->at, &c->run.err);
    const struct target_name_opts o = {
        .name = c->name, .format = c->format < 0 ? NULL : image_formats[c->format],
        .force = c->force || c->in_place, .in_place = c->in_place,
    };

    c->run.image = p ? set_image_choose(&c->catalog, p, c->disk, &c->run.err) : NULL;
    if (!c->run.image || !check_target(c) || !target_name_init(&c->target, &o, &c->run.err)) {
        target_name_done(&c->target);
        return cli_fail("restore", &c->run.err);
    }
    c->run.catalog = &c->catalog;
    c->run.compare = c->in_place;
    c->run.target.name = &c->target;
    c->run.target.format = strcmp(c->target.format, "qcow2") == 0 ? IMAGE_QCOW2 : IMAGE_RAW;
    c->run.target.options = &c->options;
    c->run.target.existing = c->in_place;
    c->run.target.watch = &c->watch;

    bool ok = restore_run(&c->run);

    progress_clear(&c->watch.progress);
    ok = ok && target_name_publish(&c->target, &c->run.err);

    int status = ok ? tell_done(c) : tell_failed(c);

    target_name_done(&c->target);
    return status;
}

int cmd_restore(int argc, char **argv)
{
    struct restore_command c = { .format = -1, .run.err = ERR_INIT };
    const struct cli_option options[] = {
        { "at", 0, CLI_TEXT, &c.at, "POINT",
          "its id, or a time: the last point before; the last of all unless given" },
        { "disk", 0, CLI_TEXT, &c.disk, "NAME", "which one, if the point has several" },
        { "target-format", 'O', CLI_CHOICE, &c.format, NULL,
          "of TARGET; by the name's ending unless given", image_formats },
        { "in-place", 0, CLI_FLAG, &c.in_place, NULL,
          "TARGET is there, as large as the disk: write only what differs" },
        { "force", 0, CLI_FLAG, &c.force, NULL, "overwrite TARGET if it is there" },
        CLI_PROGRESS(&c.style),
        { 0 },
    };
    const struct cli_command command = {
        "restore", "DIR TARGET", 2, 2,
        "Write a disk as it was at a point of the backup set DIR to a file, a block device or\n"
        "an NBD export. Each piece is held against the digest of when the backup was made: what\n"
        "is damaged is not restored. A new file has its name only when it is whole.",
        options,
        "  stillpoint restore /backups/vm disk.qcow2\n"
        "  stillpoint restore /backups/vm --at '2026-12-01 03:00' --disk data /dev/vg/data --force",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.dir = argv[first];
    c.name = argv[first + 1];
    signal(SIGPIPE, SIG_IGN);
    c.began = loop_now();
    if (!set_catalog_open(c.dir, &c.catalog, &c.run.err))
        return cli_fail("restore", &c.run.err);
    if (watch_begin(&c.watch, c.style, c.name, &c.run.err)) {
        status = run(&c);
        watch_end(&c.watch);
    } else
        status = cli_fail("restore", &c.run.err);
    set_catalog_done(&c.catalog);
    return status;
}
