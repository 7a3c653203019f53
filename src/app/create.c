/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint create: a new image, empty or standing on another.
 */
#include "app/cli.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/image_options.h"
#include "app/offline.h"
#include "app/preallocate.h"
#include "base/mem.h"
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct create_command {
    const char *path;
    int format;                    /* enum image_format; -1: by the name */
    struct image_options o;        /* -o, and what the long options say */
    uint64_t size;                 /* bytes; UINT64_MAX: the backing file's */
    int style;                     /* of progress */
    char *data_path;               /* of the file that gets the guest's data, or NULL */
    bool force, created, data_created;
    struct watch watch;
    struct err err;

    /* The long options, before they are put into .o. */
    struct cli_list given;
    const char *backing;
    int backing_format, compat, preallocation;     /* -1: not given */
    uint64_t cluster_size, refcount_bits;          /* 0: not given */
};

/* ---- the backing file ---------------------------------------------------------------------- */

/* See that the backing file can be opened as what it is said to be, so that the
 * new image can be, and how large it is. */
static bool co_look_at_backing(struct create_command *c, uint64_t *ret_size)
{
    CLEANUP(free) char *path = image_path_beside(c->path, c->o.backing_file);
    const struct offline_open o = {
        .name = path, .format = image_formats[c->o.backing_fmt], .no_backing = true,
        .force_share = true,
    };
    struct node *n = co_offline_open(&o, &c->err);

    if (!n) {
        err_prefix(&c->err, "The backing file: ");
        return false;
    }
    *ret_size = node_size(n);
    co_node_unref(n);
    return true;
}

/* ---- the file -------------------------------------------------------------------------------- */

static bool make_file(struct create_command *c, const char *path, bool *ret_created)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    struct stat st;

    *ret_created = fd >= 0;
    if (fd >= 0) {
        close(fd);
        return true;
    }
    if (errno != EEXIST)
        return err_errno(&c->err, -errno, "Cannot create '%s'", path);
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_set(&c->err, -EINVAL, "'%s' is neither a file nor a block device", path);
    if (!c->force)
        return err_set(&c->err, -EEXIST, "'%s' exists: choose another name, or overwrite it with "
                       "--force", path);
    return true;
}

/* The file itself, for us alone. */
static struct node *co_open_alone(struct create_command *c, const char *path)
{
    const struct open_file_opts o = {
        .filename = path, .format = protocol_for_filename(path),
    };
    struct node *n = co_node_open_file(&o, &c->err);

    if (!n && image_is_locked_by_others(&c->err))
        err_set(&c->err, -EAGAIN, "'%s' is open in another process: end that first", path);
    return n;
}

/* Make the file for the guest's data as long as the disk, and zero. */
static bool co_clear_data_file(struct create_command *c, struct node *file)
{
    int r;

    if (strcmp(node_driver_name(file), "file") == 0)
        return co_node_resize(file, 0, &c->err) && co_node_resize(file, c->size, &c->err);
    if (node_size(file) < c->size)
        return err_set(&c->err, -ENOSPC, "The data file '%s' is smaller than the disk",
                       c->data_path);
    r = co_node_write_zeroes(file, 0, c->size, REQ_MAY_UNMAP);
    if (r == 0)
        r = co_node_flush(file);
    return r == 0 || err_errno(&c->err, r, "Cannot clear the data file '%s'", c->data_path);
}

static bool co_make_data_file(struct create_command *c)
{
    struct node *file;
    bool ok;

    c->size = align_up(c->size, 512);      /* as the image will have it */
    /* As QEMU: with every cluster mapped the tables hide nothing that the file has. */
    if (c->o.data_file_raw && c->o.preallocation == PREALLOC_OFF)
        c->o.preallocation = PREALLOC_METADATA;
    if (!make_file(c, c->data_path, &c->data_created))
        return false;
    file = co_open_alone(c, c->data_path);
    if (!file)
        return false;
    ok = co_clear_data_file(c, file);
    co_node_unref(file);
    return ok;
}

static bool co_make_raw(struct create_command *c, struct node *file)
{
    if (strcmp(node_driver_name(file), "file") != 0)
        return err_set(&c->err, -EINVAL, "'%s' is as large as it is: there is nothing to create",
                       c->path);
    /* Cut first, so that no old content is left. */
    return co_node_resize(file, 0, &c->err) && co_node_resize(file, c->size, &c->err) &&
           co_preallocate(file, 0, c->size, (enum image_prealloc)c->o.preallocation, &c->watch,
                          &c->err);
}

static bool co_make_qcow2(struct create_command *c, struct node *file)
{
    struct qcow2_create_opts o;

    return image_options_for_qcow2(&c->o, c->size, &o, &c->err) &&
           co_qcow2_create(file, &o, &c->err);
}

/* With the clusters that are wished for from the start. */
static bool co_preallocate_qcow2(struct create_command *c)
{
    const struct open_file_opts o = { .filename = c->path, .format = "qcow2", .no_backing = true };
    struct node *n;
    bool ok;

    if (c->o.preallocation == PREALLOC_OFF)
        return true;
    n = co_node_open_file(&o, &c->err);
    ok = n && co_preallocate(n, 0, node_size(n), (enum image_prealloc)c->o.preallocation,
                             &c->watch, &c->err);
    co_node_unref(n);
    return ok;
}

static bool co_make_image(struct create_command *c)
{
    struct node *file = co_open_alone(c, c->path);

    if (!file)
        return false;

    bool ok = (!c->data_path || co_make_data_file(c)) &&
              (c->format == IMAGE_QCOW2 ? co_make_qcow2 : co_make_raw)(c, file);
    int r = ok ? co_node_flush(file) : 0;

    if (r < 0)
        ok = err_errno(&c->err, r, "Cannot flush '%s'", c->path);
    co_node_unref(file);
    return ok && (c->format != IMAGE_QCOW2 || co_preallocate_qcow2(c));
}

static int co_create(void *arg)
{
    struct create_command *c = arg;
    uint64_t backing_size;

    if (c->o.has_backing_file) {
        if (!co_look_at_backing(c, &backing_size))
            return c->err.code;
        if (c->size == UINT64_MAX)
            c->size = backing_size;
    }
    if (c->o.has_data_file)
        c->data_path = image_path_beside(c->path, c->o.data_file);
    if (!make_file(c, c->path, &c->created))
        return c->err.code;
    if (co_make_image(c))
        return 0;
    if (c->created)
        (void)unlink(c->path);
    if (c->data_created)
        (void)unlink(c->data_path);
    return c->err.code;
}

/* ---- the command ---------------------------------------------------------------------------- */

static int index_of_format(const char *name)
{
    return strcmp(name, "qcow2") == 0 ? IMAGE_QCOW2 : IMAGE_RAW;
}

static bool once(bool has, const char *option, const char *key, struct err *err)
{
    return !has || err_set(err, -EINVAL, "--%s and -o %s say the same: leave one out", option, key);
}

/* Put the long options in with those of -o. */
static bool merge_options(struct create_command *c)
{
    struct image_options *o = &c->o;

    if ((c->backing && !once(o->has_backing_file, "backing", "backing_file", &c->err)) ||
        (c->backing_format >= 0 &&
         !once(o->has_backing_fmt, "backing-format", "backing_fmt", &c->err)) ||
        (c->cluster_size && !once(o->has_cluster_size, "cluster-size", "cluster_size", &c->err)) ||
        (c->refcount_bits &&
         !once(o->has_refcount_bits, "refcount-bits", "refcount_bits", &c->err)) ||
        (c->compat >= 0 && !once(o->has_compat, "compat", "compat", &c->err)) ||
        (c->preallocation >= 0 &&
         !once(o->has_preallocation, "preallocation", "preallocation", &c->err)))
        return false;
    if (c->backing) {
        o->has_backing_file = true;
        o->backing_file = xstrdup(c->backing);
    }
    if (c->backing_format >= 0) {
        o->has_backing_fmt = true;
        o->backing_fmt = c->backing_format;
    }
    if (c->cluster_size) {
        o->has_cluster_size = true;
        o->cluster_size = c->cluster_size;
    }
    if (c->refcount_bits) {
        o->has_refcount_bits = true;
        o->refcount_bits = (uint32_t)c->refcount_bits;
    }
    if (c->compat >= 0) {
        o->has_compat = true;
        o->compat = c->compat;
    }
    if (c->preallocation >= 0) {
        o->has_preallocation = true;
        o->preallocation = c->preallocation;
    }
    return true;
}

/* What can be said without looking at anything. -1: go on. */
static int check_options(struct create_command *c)
{
    bool qcow2;

    if (c->format < 0)
        c->format = index_of_format(image_format_by_name(c->path));
    qcow2 = c->format == IMAGE_QCOW2;
    if (image_name_is_uri(c->path))
        return cli_misuse("create", "'%s' is not a file: servers make their own exports", c->path);
    if (!qcow2 && (c->backing || c->backing_format >= 0 || c->compat >= 0 || c->cluster_size ||
                   c->refcount_bits))
        return cli_misuse("create", "a raw image has neither a backing file nor other "
                          "options: say --format qcow2, or a name that ends in .qcow2");
    if (!image_options_decode(&c->given, (enum image_format)c->format, &c->o, &c->err) ||
        !merge_options(c))
        return cli_misuse("create", "%s", c->err.text);
    if (c->o.has_backing_fmt && !c->o.has_backing_file)
        return cli_misuse("create", c->backing_format >= 0 ? "--backing-format without --backing"
                                                            : "backing_fmt without backing_file");
    if (c->o.has_backing_file && c->o.preallocation && !c->o.extended_l2)
        return cli_misuse("create", "preallocation would hide the backing file: leave it out, or "
                          "say -o extended_l2=on too");
    if (c->size == UINT64_MAX && !c->o.has_backing_file)
        return cli_misuse("create", "how large shall it be? Say SIZE, such as 20G");
    return -1;
}

/* The format of the backing file is written into the image, so it must be right. */
static bool settle_backing_format(struct create_command *c)
{
    CLEANUP(free) char *path = NULL;
    const char *format;

    if (!c->o.has_backing_file || c->o.has_backing_fmt)
        return true;
    path = image_path_beside(c->path, c->o.backing_file);
    format = image_format_to_read(path, NULL, &c->err);
    if (!format)
        return err_set(&c->err, -EINVAL, "The backing file '%s' looks like a qcow2 image, but its "
                       "name does not say so: say --backing-format", path);
    c->o.has_backing_fmt = true;
    c->o.backing_fmt = index_of_format(format);
    return true;
}

static int run(struct create_command *c)
{
    char buf[HUMAN_TEXT];
    int status = check_options(c), r;

    if (status >= 0)
        return status;
    if (!settle_backing_format(c) || !watch_begin(&c->watch, c->style, c->path, &c->err))
        return cli_fail("create", &c->err);
    r = offline_run(co_create, c, &c->err);
    watch_end(&c->watch);
    if (r == -ECANCELED && watch_cancelled(&c->watch)) {
        cli_failf("create", "Cancelled. %s", c->created ? "Nothing is left of it"
                                                         : "What was there is lost");
        return EXIT_CANCELLED;
    }
    if (r < 0)
        return cli_fail("create", &c->err);
    printf("%s: %s, %s\n", c->path, image_formats[c->format], human_size(c->size, buf));
    return cli_end_output("create");
}

int cmd_create(int argc, char **argv)
{
    struct create_command c = {
        .format = -1, .backing_format = -1, .compat = -1, .preallocation = -1,
        .size = UINT64_MAX, .err = ERR_INIT,
    };
    const struct cli_option options[] = {
        { "format", 'f', CLI_CHOICE, &c.format, NULL, "by the name's ending unless given",
          image_formats },
        { "backing", 'b', CLI_TEXT, &c.backing, "FILE",
          "the image to stand on, as the new one is to name it; SIZE may be left out then" },
        { "backing-format", 'F', CLI_CHOICE, &c.backing_format, NULL,
          "by the name's ending unless given", image_formats },
        { "cluster-size", 0, CLI_SIZE, &c.cluster_size, "SIZE",
          "of qcow2: 512 to 2M, a power of two; 64k unless given", .max = UINT32_MAX },
        { "refcount-bits", 0, CLI_NUMBER, &c.refcount_bits, "N",
          "of qcow2: 1 to 64, a power of two; 16 unless given", .max = 64 },
        { "compat", 0, CLI_CHOICE, &c.compat, NULL,
          "of qcow2: 0.10 is version 2, 1.1 is version 3", image_compats },
        { "preallocation", 0, CLI_CHOICE, &c.preallocation, NULL,
          "what gets its space now", image_preallocs },
        CLI_IMAGE_OPTIONS(&c.given),
        CLI_PROGRESS(&c.style),
        { "force", 0, CLI_FLAG, &c.force, NULL, "overwrite what is there" },
        { 0 },
    };
    const struct cli_command command = {
        "create", "IMAGE [SIZE]", 0, 2, "Make a new image.", options,
        "  stillpoint create disk.qcow2 20G\n"
        "  stillpoint create overlay.qcow2 --backing disk.qcow2\n"
        "  stillpoint create disk.qcow2 1T -o cluster_size=128k,preallocation=metadata",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    if (image_options_want_help(&c.given)) {
        const char *name = argc > first ? argv[first] : "a.qcow2";

        if (c.format < 0)
            c.format = index_of_format(image_format_by_name(name));
        return image_options_print_help("create", (enum image_format)c.format);
    }
    if (argc == first)
        return cli_misuse("create", "something is missing: it takes %s", command.operands);
    c.path = argv[first];
    if (argc - first > 1 && !schema_parse_size(argv[first + 1], &c.size, &c.err))
        return cli_misuse("create", "SIZE: %s", c.err.text);
    if (argc - first > 1 && c.size > INT64_MAX)
        return cli_misuse("create", "SIZE: '%s' is more than an image can have", argv[first + 1]);
    status = run(&c);
    free(c.data_path);
    image_options_clear(&c.o);
    return status;
}
