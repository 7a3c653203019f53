/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint open: a disk of a backup set as it was at a point, over NBD. It is stillpoint serve
 * of the point's image, read-only, or of an overlay that goes when it ends, so that a machine
 * can be started from a backup and the backup stays what it is.
 */
#include "app/cli.h"
#include "app/image_name.h"
#include "app/set_image.h"
#include "base/mem.h"
#include "job/job.h"
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEFAULT_LISTEN "unix:stillpoint-nbd.sock"
#define DEFAULT_CONTROL "stillpoint-open.sock"

struct open_command {
    const char *dir, *at, *disk, *listen, *control, *scratch_dir;
    bool writable;
    struct set_catalog catalog;
    char *image;                       /* from the root */
    char *folder, *overlay;            /* with --writable; NULL until they are there */
    struct err err;
};

/* An empty overlay over the image. Made by another process: this one has the loops of a
 * server to come. */
static bool make_overlay(struct open_command *c)
{
    char *folder = xasprintf("%s/stillpoint-open-XXXXXX", c->scratch_dir);
    int status;
    pid_t pid;

    if (!mkdtemp(folder)) {
        err_errno(&c->err, -errno, "There can be no overlay in '%s'", c->scratch_dir);
        free(folder);
        return false;
    }
    c->folder = folder;
    c->overlay = xasprintf("%s/overlay.qcow2", folder);
    pid = fork();
    if (pid == 0) {
        const char *argv[] = { "create", "--backing", c->image, "--backing-format", "qcow2",
                               c->overlay, NULL };

        if (!freopen("/dev/null", "w", stdout))
            _exit(EXIT_FAILED);
        _exit(cmd_create((int)ARRAY_SIZE(argv) - 1, (char **)argv));
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return err_errno(&c->err, -errno, "No process can be made");
    return (WIFEXITED(status) && WEXITSTATUS(status) == 0) ||
           err_set(&c->err, -EIO, "The overlay '%s' cannot be made", c->overlay);
}

static void remove_overlay(struct open_command *c)
{
    if (c->overlay)
        (void)unlink(c->overlay);
    if (c->folder)
        (void)rmdir(c->folder);
}

static int serve(struct open_command *c, const char *name)
{
    const char *file = c->overlay ? c->overlay : c->image;
    CLEANUP(free) char *what = xasprintf("%s=%s", job_id_wellformed(name) ? name : "disk", file);
    const char *argv[] = { "serve", "--format", "qcow2", "--listen", c->listen, "--control",
                           c->control, "--image-dir", c->dir, what, "--read-only", NULL };
    int argc = (int)ARRAY_SIZE(argv) - 1;

    if (c->writable)
        argv[--argc] = NULL;
    return cmd_serve(argc, (char **)argv);
}

static int run(struct open_command *c)
{
    const struct set_point *p = set_catalog_find(&c->catalog, c->at, &c->err);
    const struct set_image *im = p ? set_image_choose(&c->catalog, p, c->disk, &c->err) : NULL;
    CLEANUP(free) char *path = im ? set_path(&c->catalog, im->disk->file) : NULL;
    int status;

    if (!im)
        return cli_fail("open", &c->err);
    if (im->broken)
        return cli_failf("open", "%s", im->broken);
    c->image = image_absolute_path(path, &c->err);
    if (!c->image || (c->writable && !make_overlay(c))) {
        remove_overlay(c);
        return cli_fail("open", &c->err);
    }
    printf("disk %s of %s%s\n", im->disk->name, p->m.instant_text,
           c->writable ? "; what is written is thrown away at the end" : ", read-only");
    status = serve(c, im->disk->name);
    remove_overlay(c);
    return status;
}

int cmd_open(int argc, char **argv)
{
    struct open_command c = { .listen = DEFAULT_LISTEN, .control = DEFAULT_CONTROL,
                              .scratch_dir = "/var/tmp", .err = ERR_INIT };
    const struct cli_option options[] = {
        { "at", 0, CLI_TEXT, &c.at, "POINT",
          "its id, or a time: the last point before; the last of all unless given" },
        { "disk", 0, CLI_TEXT, &c.disk, "NAME", "which one, if the point has several" },
        { "writable", 'w', CLI_FLAG, &c.writable, NULL,
          "let clients write; it is thrown away at the end, and the backup stays as it is" },
        { "listen", 0, CLI_TEXT, &c.listen, "unix:PATH|tcp:HOST:PORT",
          "where NBD clients connect; " DEFAULT_LISTEN " unless given" },
        { "control", 0, CLI_TEXT, &c.control, "PATH",
          "the control socket; " DEFAULT_CONTROL " unless given" },
        { "scratch-dir", 0, CLI_TEXT, &c.scratch_dir, "DIR",
          "where what is written is kept meanwhile; /var/tmp unless given" },
        { 0 },
    };
    const struct cli_command command = {
        "open", "DIR", 1, 1,
        "Serve a disk of a backup set as it was at a point, over NBD, until Ctrl-C: to look at\n"
        "it, to fetch a file, or with --writable to start a machine from it. Nothing is verified;\n"
        "'stillpoint verify' does that.",
        options, "  stillpoint open /backups/vm --at 2026-12-01 --listen unix:monday.sock",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.dir = argv[first];
    if (!set_catalog_open(c.dir, &c.catalog, &c.err))
        return cli_fail("open", &c.err);
    status = run(&c);
    set_catalog_done(&c.catalog);
    free(c.image);
    free(c.folder);
    free(c.overlay);
    return status;
}
