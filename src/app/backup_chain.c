/* SPDX-License-Identifier: Apache-2.0
 *
 * Links of a chain of backups: see backup_chain.h.
 */
#include "app/backup_chain.h"
#include "app/image_name.h"
#include "base/mem.h"
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

/* In the order of QAPI's BitmapSyncMode. */
const char *const backup_chain_modes[] = { "on-success", "never", "always", NULL };
enum { MODE_NEVER = 1 };

const char *backup_chain_misuse(const struct backup_chain *c, const char *sync)
{
    if (!c->bitmap)
        return c->incremental ? "--incremental needs --bitmap NAME, which tells what has changed"
               : c->backing ? "--backing is for --incremental"
               : c->mode >= 0 ? "--bitmap-mode is for --bitmap" : NULL;
    if (c->incremental && strcmp(sync, "full") != 0)
        return "--incremental takes the place of --sync";
    if (strcmp(sync, "none") == 0)
        return "--bitmap does not go with --sync none, which copies what is overwritten later";
    if (c->backing && !c->incremental)
        return "--backing is for --incremental: a full backup stands alone";
    if (c->mode == MODE_NEVER && !c->incremental)
        return "--bitmap-mode never changes nothing without --incremental: leave --bitmap out";
    return NULL;
}

/* ---- the backing file -------------------------------------------------------------- */

/* By its name alone if it lies beside the target: a folder of backups can be moved. A colon
 * would make it a protocol's. */
static char *name_beside(const char *target, const char *backing)
{
    const char *slash = strrchr(backing, '/');
    size_t dir = (size_t)(slash - backing) + 1;

    bool beside = strncmp(target, backing, dir) == 0 && !strchr(target + dir, '/');

    return xstrdup(beside && !strchr(slash, ':') ? slash + 1 : backing);
}

bool backup_chain_settle(struct backup_chain *c, const struct target_name *t, struct err *err)
{
    bool qcow2 = strcmp(t->format, "qcow2") == 0;

    /* What is written in place holds the backup before. */
    if (!c->incremental || (t->device && !c->backing))
        return true;
    if (!qcow2)
        return err_set(err, -EINVAL, "An incremental backup stands on the one before, and a raw "
                       "'%s' cannot: give it a name that ends in .qcow2, or say --format qcow2",
                       t->name);
    if (!c->backing)
        return err_set(err, -EINVAL, "Which backup shall '%s' stand on? Say --backing FILE: the "
                       "one that was made with this bitmap before", t->name);
    if (image_name_is_uri(c->backing)) {
        c->backing_name = xstrdup(c->backing);
        c->backing_format = "raw";
        return true;
    }

    char *path = realpath(c->backing, NULL);

    if (!path)
        return err_errno(err, -errno, "The backup before, '%s'", c->backing);
    c->backing_format = image_format_to_read(path, NULL, err);
    if (c->backing_format && strcmp(path, t->path) == 0)
        err_set(err, -EINVAL, "'%s' cannot stand on itself: choose another name", t->name);
    else if (c->backing_format)
        c->backing_name = name_beside(t->path, path);
    free(path);
    return c->backing_name != NULL;
}

void backup_chain_done(struct backup_chain *c)
{
    free(MOVE(c->backing_name));
}

/* ---- the job ----------------------------------------------------------------------- */

static bool add(json_t *args, const char *key, json_t *value, struct err *err)
{
    return json_object_set_new(args, key, value) == 0 ||
           err_set(err, -EILSEQ, "The name of the bitmap or of the backup before has bytes that "
                   "are not UTF-8, which QMP cannot carry");
}

bool backup_chain_arguments(const struct backup_chain *c, bool make, json_t *args,
                            struct err *err)
{
    if (!c->bitmap)
        return true;
    /* The bitmap shall not forget what it knows before the backup has its name. */
    json_object_set_new(args, "auto-finalize", json_false());
    if (c->incremental)
        json_object_set_new(args, "sync", json_string(c->mode < 0 ? "incremental" : "bitmap"));
    if (c->backing_name && (!add(args, "backing-file", json_string(c->backing_name), err) ||
                            !add(args, "backing-fmt", json_string(c->backing_format), err)))
        return false;
    if (make)
        return add(args, "new-bitmap", json_pack("{s:s, s:b}", "name", c->bitmap, "persistent", 1),
                   err);
    if (c->mode >= 0 || !c->incremental)
        json_object_set_new(args, "bitmap-mode", json_string(backup_chain_modes[MAX(c->mode, 0)]));
    return add(args, "bitmap", json_string(c->bitmap), err);
}

bool backup_chain_has_to_make(const struct backup_chain *c, const struct err *refusal)
{
    return c->bitmap && !c->incremental && strstr(refusal->text, "could not be found");
}

/* "somebody wrote" of "Bitmap 'b' is inconsistent and cannot be used: somebody wrote. Try ...". */
static char *reason_of(const char *text)
{
    static const char before[] = "cannot be used: ", behind[] = ". Try ";
    const char *from = strstr(text, before), *to = from ? strstr(from, behind) : NULL;

    return to ? xasprintf("%.*s", (int)(to - from - (ptrdiff_t)strlen(before)),
                          from + strlen(before)) : xstrdup("it is inconsistent");
}

bool backup_chain_explain(const struct backup_chain *c, const char *disk, struct err *err)
{
    struct err told = *err;
    CLEANUP(free) char *reason = reason_of(told.text);

    if (!c->bitmap)
        return false;
    if (strstr(told.text, "could not be found"))
        err_set(err, told.code, "'%s' has no bitmap '%s' that tells what has changed: a full "
                "backup begins one, 'stillpoint backup %s TARGET --bitmap %s'", disk, c->bitmap,
                disk, c->bitmap);
    else if (strstr(told.text, "is currently in use by another operation"))
        err_set(err, told.code, "Bitmap '%s' of '%s' is in use, by a backup that runs ('stillpoint "
                "jobs' shows it) or an export: wait for its end, or use another bitmap",
                c->bitmap, disk);
    else if (strstr(told.text, "is inconsistent"))
        err_set(err, told.code, "Bitmap '%s' of '%s' cannot tell any more what has changed (%s): "
                "begin a new chain, by a full backup with another --bitmap", c->bitmap, disk,
                reason);
    else
        return false;
    return true;
}
