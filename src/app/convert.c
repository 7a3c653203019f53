/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint convert: the content of an image that nobody has open, with all that it
 * stands on, in another image: of another format, compressed, flat or over a backing
 * file. A backup of a disk at rest, so it appears under its name in the same way
 * (target_name.c).
 */
#include "app/convert_run.h"
#include "app/human.h"
#include "app/image_name.h"
#include "base/limits.h"
#include "base/mem.h"
#include "loop/loop.h"
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

struct convert_command {
    struct convert run;
    const char *name;              /* of the target */
    int format, style;             /* -1: by the name */
    struct cli_list given, image_dirs;
    const char *backing;
    int backing_format;            /* -1: not given */
    struct image_options options;
    bool format_given, force;

    struct watch watch;
    struct target_name target;
    uint64_t began;                /* loop_now time */
};

/* ---- arguments ------------------------------------------------------------------------ */

static int index_of_format(const char *name)
{
    return strcmp(name, "qcow2") == 0 ? IMAGE_QCOW2 : IMAGE_RAW;
}

/* The format of a backing file is written into the image, so it must be right. */
static bool settle_backing(struct convert_command *c)
{
    struct image_options *o = &c->options;
    CLEANUP(free) char *path = NULL;
    const char *format;

    if (c->backing && o->has_backing_file)
        return err_set(&c->run.err, -EINVAL, "--backing and -o backing_file say the same: leave "
                       "one out");
    if (c->backing) {
        o->has_backing_file = true;
        o->backing_file = xstrdup(c->backing);
    }
    if (c->backing_format >= 0) {
        o->has_backing_fmt = true;
        o->backing_fmt = c->backing_format;
    }
    if (!o->has_backing_file)
        return !o->has_backing_fmt ||
               err_set(&c->run.err, -EINVAL, "the format of a backing file, but no backing file");
    if (o->has_backing_fmt)
        return true;
    path = image_path_beside(c->name, o->backing_file);
    format = image_format_to_read(path, NULL, &c->run.err);
    if (!format)
        return err_set(&c->run.err, -EINVAL, "the backing file '%s' looks like a qcow2 image, but "
                       "its name does not say so: say --backing-format", path);
    o->has_backing_fmt = true;
    o->backing_fmt = index_of_format(format);
    return true;
}

/* What can be said without looking at images. -1: go on. */
static int check_options(struct convert_command *c)
{
    struct convert *run = &c->run;

    c->format_given = c->format >= 0;
    if (!c->format_given)
        c->format = index_of_format(image_format_by_name(c->name));
    run->format = (enum image_format)c->format;
    if (run->compress && run->format != IMAGE_QCOW2)
        return cli_misuse("convert", "--compress needs a TARGET that can hold compressed data: a "
                          "name that ends in .qcow2, or --target-format qcow2");
    if (run->compress && run->allocate)
        return cli_misuse("convert", "--compress and --no-sparse contradict each other");
    if (run->existing && (c->given.n || c->backing))
        return cli_misuse("convert", "--no-create takes TARGET as it is: no -o, no --backing");
    if (c->backing && run->format != IMAGE_QCOW2)
        return cli_misuse("convert", "a raw image has no backing file: say --target-format qcow2, "
                          "or a name that ends in .qcow2");
    if (!image_options_decode(&c->given, run->format, &c->options, &run->err) ||
        !settle_backing(c))
        return cli_misuse("convert", "%s", run->err.text);
    if (c->options.preallocation && (run->compress || c->options.has_backing_file))
        return cli_misuse("convert", "%s needs no preallocation: leave one out",
                          run->compress ? "--compress" : "--backing");
    if (c->options.has_data_file)
        return cli_misuse("convert", "an image with a data file is made with 'stillpoint create' "
                          "and filled with 'convert --no-create'");
    return -1;
}

static int parse(struct convert_command *c, int argc, char **argv)
{
    struct convert *run = &c->run;
    const struct cli_option options[] = {
        { "source-format", 'f', CLI_TEXT, &run->source.format, "FORMAT",
          "of SOURCE: raw or qcow2; by the name's ending unless given" },
        { "snapshot", 'l', CLI_TEXT, &run->source.snapshot, "NAME",
          "SOURCE as it was at this snapshot inside it (name or id)" },
        { "target-format", 'O', CLI_CHOICE, &c->format, NULL, "the same of TARGET",
          image_formats },
        CLI_IMAGE_OPTIONS(&c->given),
        { "compress", 'c', CLI_FLAG, &run->compress, NULL,
          "TARGET's data; qcow2 only; -o compression_type=zstd is faster than zlib" },
        { "backing", 'B', CLI_TEXT, &c->backing, "FILE",
          "let TARGET stand on this image, as it is to name it, and hold only what differs" },
        { "backing-format", 'F', CLI_CHOICE, &c->backing_format, NULL,
          "by the name's ending unless given", image_formats },
        { "no-sparse", 0, CLI_FLAG, &run->allocate, NULL,
          "write zeros as data, so that all of TARGET has its space" },
        { "no-create", 'n', CLI_FLAG, &run->existing, NULL,
          "TARGET is there, as large as SOURCE: write into it where it is" },
        { "target-is-zero", 0, CLI_FLAG, &run->target_is_zero, NULL,
          "of a device, an export or with --no-create: it reads as zero, so zeros are left out" },
        { "parallel", 'm', CLI_NUMBER, &run->parallel, "N",
          "pieces copied at the same time, at most; as many as pay unless given",
          .max = LIMIT_BACKUP_WORKERS },
        { "speed", 0, CLI_RATE, &run->speed, "RATE", "at most, such as 50M; 0: no limit",
          .max = INT64_MAX },
        { "force", 0, CLI_FLAG, &c->force, NULL, "replace TARGET if it is there" },
        { "force-share", 'U', CLI_FLAG, &run->source.force_share, NULL,
          "although another process may be writing SOURCE" },
        CLI_IMAGE_DIR(&c->image_dirs),
        CLI_PROGRESS(&c->style),
        { 0 },
    };
    const struct cli_command command = {
        "convert", "SOURCE TARGET", 0, 2,
        "Copy an image that nobody writes, with all that it stands on, to an image of another\n"
        "kind. SOURCE and TARGET are files, block devices or NBD URIs. A file is there under\n"
        "its name only when it is whole. What is zero or a hole in SOURCE takes no space.",
        options,
        "  stillpoint convert disk.raw disk.qcow2 --compress -o compression_type=zstd\n"
        "  stillpoint convert top.qcow2 flat.qcow2\n"
        "  stillpoint convert disk.qcow2 delta.qcow2 --backing base.qcow2",
    };
    int first, status = -1;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    if (image_options_want_help(&c->given))
        return image_options_print_help("convert", c->format < 0 ? IMAGE_QCOW2
                                                                 : (enum image_format)c->format);
    if (argc - first < 2)
        return cli_misuse("convert", "something is missing: it takes %s", command.operands);
    run->source.name = argv[first];
    c->name = argv[first + 1];
    status = check_options(c);
    if (status >= 0)
        return status;
    return cli_allow_image_dirs(&c->image_dirs, &run->err) ? -1 : cli_fail("convert", &run->err);
}

/* ---- the end --------------------------------------------------------------------------- */

static void tell_started(struct convert_command *c)
{
    progress_event(&c->watch.progress,
                   json_pack("{s:s, s:o, s:o, s:s}", "event", "started", "source",
                             schema_json_str(c->run.source.name), "target",
                             schema_json_str(c->target.path), "format",
                             image_formats[c->run.format]));
}

static int tell_done(struct convert_command *c)
{
    uint64_t ns = loop_now() - c->began;
    double seconds = (double)MAX(ns, NSEC_PER_MSEC) / NSEC_PER_SEC;
    char size[HUMAN_TEXT], copied[HUMAN_TEXT], rate[HUMAN_TEXT], duration[HUMAN_TEXT];

    progress_event(&c->watch.progress,
                   json_pack("{s:s, s:o, s:I, s:I, s:f}", "event", "completed", "target",
                             schema_json_str(c->target.path), "size", (json_int_t)c->run.size,
                             "bytes", (json_int_t)c->run.copied, "seconds", seconds));
    if (progress_for_people(&c->watch.progress)) {
        human_duration((uint64_t)(seconds + 0.5), duration);
        if (seconds < 10)
            snprintf(duration, sizeof(duration), "%.2g s", seconds);
        printf("%s: %s, %s of %s in %s, %s/s\n", c->name, image_formats[c->run.format],
               human_size(c->run.copied, copied), human_size(c->run.size, size), duration,
               human_size((uint64_t)((double)c->run.copied / seconds), rate));
    }
    (void)cli_end_output("convert");
    return EXIT_OK;
}

/* Remove what there is of the target. */
static bool discard(struct convert_command *c)
{
    if (c->run.existing)
        return !c->run.started;
    return target_name_discard(&c->target, c->run.started);
}

static int tell_failed(struct convert_command *c)
{
    (void)discard(c);
    progress_event(&c->watch.progress, json_pack("{s:s, s:o}", "event", "failed", "error",
                                           schema_json_str(c->run.err.text)));
    return cli_fail("convert", &c->run.err);
}

static int finish(struct convert_command *c, enum convert_end end)
{
    progress_clear(&c->watch.progress);
    if (end == CONVERT_DONE && !target_name_publish(&c->target, &c->run.err))
        end = CONVERT_FAILED;
    switch (end) {
    case CONVERT_DONE:
        return tell_done(c);
    case CONVERT_FAILED:
        return tell_failed(c);
    case CONVERT_CANCELLED:
    case CONVERT_GIVEN_UP:
        progress_event(&c->watch.progress, json_pack("{s:s}", "event", "cancelled"));
        if (discard(c))
            cli_failf("convert", "cancelled; nothing was left behind");
        else
            cli_failf("convert", "cancelled; '%s' holds half of it",
                      target_name_job_path(&c->target));
        return EXIT_CANCELLED;
    }
    abort();
}

/* Settle the name, do the work, and give it the name. */
static int run(struct convert_command *c)
{
    const struct target_name_opts o = {
        .name = c->name, .format = image_formats[c->format],
        .force = c->force || c->run.existing, .in_place = c->run.existing,
    };
    enum convert_end end = CONVERT_FAILED;

    if (c->run.existing && !image_name_is_uri(c->name) &&
        !image_format_to_read(c->name, c->format_given ? o.format : NULL, &c->run.err))
        return cli_fail("convert", &c->run.err);
    if (c->run.existing && !image_name_is_uri(c->name) && access(c->name, F_OK) < 0) {
        err_errno(&c->run.err, -errno, "'%s'", c->name);
        return cli_fail("convert", &c->run.err);
    }
    if (target_name_init(&c->target, &o, &c->run.err)) {
        tell_started(c);
        end = convert_run(&c->run);
    }
    return finish(c, end);
}

static const char *last_part(const char *name)
{
    const char *slash = image_name_is_uri(name) ? NULL : strrchr(name, '/');

    return slash && slash[1] ? slash + 1 : name;
}

int cmd_convert(int argc, char **argv)
{
    struct convert_command c = { .format = -1, .backing_format = -1, .run.err = ERR_INIT };
    CLEANUP(free) char *what = NULL;
    int status = parse(&c, argc, argv);

    if (status < 0) {
        /* Whoever reads the progress may go away. */
        signal(SIGPIPE, SIG_IGN);
        c.began = loop_now();
        what = xasprintf("%s -> %s", last_part(c.run.source.name), last_part(c.name));
        if (!watch_begin(&c.watch, c.style, what, &c.run.err))
            return cli_fail("convert", &c.run.err);
        c.run.watch = &c.watch;
        c.run.target = &c.target;
        c.run.options = &c.options;
        status = run(&c);
        target_name_done(&c.target);
        watch_end(&c.watch);
    }
    image_options_clear(&c.options);
    return status;
}
