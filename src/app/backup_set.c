/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint backup --to: the set's directory. What is written when is docs/backup-sets.md,
 * I-M1 to I-M8.
 */
#include "app/backup_set.h"
#include "app/backup_command.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "app/set_digests.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "set/file.h"
#include "set/lock.h"
#include "set/name.h"
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the directory -------------------------------------------------------------------- */

/* Make @dir, or find it. */
static bool make_dir(const char *dir, struct err *err)
{
    struct stat st;

    if (mkdir(dir, 0777) == 0)
        return true;
    if (errno == ENOENT)
        return err_set(err, -ENOENT, "There is no directory to make the set '%s' in: make it "
                       "first", dir);
    if (errno != EEXIST)
        return err_errno(err, -errno, "The set '%s' cannot be made", dir);
    if (stat(dir, &st) < 0 || !S_ISDIR(st.st_mode))
        return err_set(err, -ENOTDIR, "'%s' is not a directory", dir);
    return true;
}

/* Only where nothing else is: a directory that was named by mistake stays as it was. */
static bool make_set(const char *dir, struct err *err)
{
    CLEANUP(free) char *text = NULL;
    bool empty;

    if (!set_dir_is_empty(dir, &empty, err))
        return false;
    if (!empty)
        return err_set(err, -ENOTEMPTY, "'%s' is not a backup set, and there are files in it: "
                       "name a set, or a directory that is empty or not there yet", dir);
    text = set_description_new(err);
    return text && set_file_write(dir, SET_FILE, text, strlen(text), err);
}

static bool open_catalog(struct backup_set *s, bool make, struct err *err)
{
    struct err own = ERR_INIT;

    if (set_catalog_open(s->dir, &s->catalog, &own))
        return true;
    if (own.code != -ENODATA && own.code != -ENOENT) {
        *err = own;
        return false;
    }
    if (!make) {
        bool empty = true;

        if (own.code == -ENODATA && !set_dir_is_empty(s->dir, &empty, err))
            return false;
        return empty || err_set(err, own.code, "%s", own.text);
    }
    return make_set(s->dir, err) && set_catalog_open(s->dir, &s->catalog, err);
}

bool backup_set_open(struct backup_command *c)
{
    struct backup_set *s = c->set = xnew(struct backup_set);
    struct err *err = &c->run.err;

    s->lock = -1;
    s->n = c->n_disks;
    s->disks = xcalloc(s->n, sizeof(*s->disks));
    s->dir = image_absolute_path(c->to, err);
    if (!s->dir)
        return false;
    if (c->dry_run)
        return open_catalog(s, false, err);
    if (!make_dir(s->dir, err))
        return false;
    s->lock = set_lock(s->dir, err);
    return s->lock >= 0 && open_catalog(s, true, err);
}

/* ---- the new point ---------------------------------------------------------------------- */

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* By a point, or by a bitmap of one that is gone or never was. */
static bool is_taken(const struct backup_set *s, const char *id)
{
    CLEANUP(free) char *bitmap = set_bitmap_name(s->catalog.uuid, id);
    CLEANUP(free) char *manifest = set_manifest_name(id), *pending = set_pending_name(id);
    CLEANUP(free) char *a = xasprintf("%s/%s", s->dir, manifest);
    CLEANUP(free) char *b = xasprintf("%s/%s", s->dir, pending);

    for (size_t i = 0; i < s->n; i++) {
        if (backup_set_find_bitmap(&s->disks[i], bitmap))
            return true;
    }
    return access(a, F_OK) == 0 || access(b, F_OK) == 0;
}

static void choose_id(struct backup_set *s)
{
    int64_t now = now_ms();

    s->id = set_id_of(now, 1);
    for (unsigned again = 2; is_taken(s, s->id); again++) {
        free(s->id);
        s->id = set_id_of(now, again);
    }
    s->sequence = 1;
    for (size_t i = 0; i < s->catalog.n_points; i++)
        s->sequence = MAX(s->sequence, s->catalog.points[i].m.sequence + 1);
    for (size_t i = 0; i < s->catalog.n_pending; i++)
        s->sequence = MAX(s->sequence, s->catalog.pending[i].m.sequence + 1);
}

static bool choose_targets(struct backup_command *c)
{
    struct backup_set *s = c->set;

    for (size_t i = 0; i < c->n_disks; i++) {
        struct backup_disk *d = &c->disks[i];
        CLEANUP(free) char *file = set_image_name(s->id, s->disks[i].name);
        struct target_name_opts o = { .format = "qcow2" };

        d->made = xasprintf("%s/%s", s->dir, file);
        d->target_name = o.name = d->made;
        if (!target_name_init(&d->target, &o, &c->run.err))
            return false;
    }
    return true;
}

static void fill_latency(struct set_disk *d, const json_t *guest)
{
    struct set_guest_latency *g = &d->guest_latency;
    const struct {
        const char *key;
        uint64_t *to;
    } members[] = {
        { "writes", &g->writes }, { "delayed", &g->delayed }, { "p50-ns", &g->p50_ns },
        { "p99-ns", &g->p99_ns }, { "p999-ns", &g->p999_ns }, { "max-ns", &g->max_ns },
    };

    d->has_guest_latency = guest != NULL;
    for (size_t i = 0; guest && i < ARRAY_SIZE(members); i++) {
        json_int_t v = json_integer_value(json_object_get(guest, members[i].key));

        *members[i].to = (uint64_t)MAX(v, (json_int_t)0);
    }
}

static char *text_member(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));

    return xstrdup(text ? text : "");
}

static void fill_disk(const struct backup_command *c, size_t i, struct set_disk *to)
{
    const struct backup_set_disk *d = &c->set->disks[i];
    const json_t *image = json_object_get(d->info, "image");

    *to = (struct set_disk){
        .name = xstrdup(d->name),
        .identity = c->control ? text_member(image, "filename")
                               : image_absolute_path(c->disks[i].source, NULL),
        .size = (uint64_t)json_integer_value(json_object_get(image, "virtual-size")),
        .file = set_image_name(c->set->id, d->name),
        .format = xstrdup("qcow2"),
        .kind = d->parent ? SET_INCREMENTAL : SET_FULL,
        .reason = xstrdup(d->reason),
        .has_parent = d->parent != NULL,
        .parent = d->parent ? xstrdup(d->parent->point->m.id) : NULL,
        .bytes = c->jobs[i].current,
        .has_bitmap = d->bitmap != NULL,
        .bitmap = d->bitmap ? xstrdup(d->bitmap) : NULL,
    };
    fill_latency(to, c->jobs[i].guest);
    set_digests_plan(to, d->parent);
}

static void fill_quiesce(const struct backup_command *c, struct set_quiesce *to)
{
    const struct quiesce_result *q = &c->quiesced;

    *to = (struct set_quiesce){
        .held = q->held,
        .has_file_systems = c->quiesce.agent != NULL,
        .file_systems = q->file_systems,
        .has_frozen_ms = c->quiesce.agent != NULL,
        .frozen_ms = div_round_up(q->frozen_ns, NSEC_PER_MSEC),
        .has_error = q->err.code != 0,
        .error = q->err.code ? xstrdup(q->err.text) : NULL,
    };
}

static void fill_manifest(struct backup_command *c)
{
    struct backup_set *s = c->set;

    set_manifest_done(&s->m);
    s->m = (struct set_manifest){
        .set = xstrdup(s->catalog.uuid),
        .id = xstrdup(s->id),
        .sequence = s->sequence,
        .instant = c->instant_ms,
        .duration_ms = (loop_now() - c->began) / NSEC_PER_MSEC,
        .version = xstrdup(STILLPOINT_VERSION),
        .has_quiesce = backup_quiesces(c),
        .disks = { c->n_disks, xcalloc(c->n_disks, sizeof(struct set_disk)) },
    };
    if (s->m.has_quiesce)
        fill_quiesce(c, &s->m.quiesce);
    for (size_t i = 0; i < c->n_disks; i++)
        fill_disk(c, i, set_manifest_disk(&s->m, i));
}

/* As pending. */
static bool write_manifest(struct backup_command *c)
{
    CLEANUP(free) char *pending = set_pending_name(c->set->id);
    CLEANUP(free) char *text = set_manifest_text(&c->set->m);

    c->set->pending = true;
    return set_file_write(c->set->dir, pending, text, strlen(text), &c->run.err);
}

bool backup_set_begin(struct backup_command *c)
{
    struct backup_set *s = c->set;

    if (!backup_set_sweep(&s->catalog, &c->run.err))
        return false;
    choose_id(s);
    c->instant_ms = now_ms();
    if (!choose_targets(c))
        return false;
    fill_manifest(c);
    return write_manifest(c);
}

/* The images are read back while they still have their temporary names. */
static int co_make_digests(void *arg)
{
    struct backup_command *c = arg;
    struct watch watch = { .interrupt = c->interrupt };
    struct err *err = &c->run.err;
    bool ok = true;

    progress_init(&watch.progress, c->progress.style, "reading back", false, loop_now());
    for (size_t i = 0; ok && i < c->n_disks; i++) {
        const char *image = strrchr(target_name_job_path(&c->disks[i].target), '/') + 1;

        ok = co_set_digests_make(c->set->dir, image, set_manifest_disk(&c->set->m, i),
                                 c->set->disks[i].parent, &watch, err);
    }
    progress_clear(&watch.progress);
    c->interrupt = watch.interrupt;
    return ok ? 0 : err->code;
}

bool backup_set_make_digests(struct backup_command *c)
{
    fill_manifest(c);
    return offline_run(co_make_digests, c, &c->run.err) == 0;
}

bool backup_set_record(struct backup_command *c)
{
    struct backup_set *s = c->set;
    CLEANUP(free) char *pending = set_pending_name(s->id), *manifest = set_manifest_name(s->id);

    if (!write_manifest(c) || !set_file_rename(s->dir, pending, manifest, &c->run.err))
        return false;
    s->pending = false;
    s->recorded = true;
    return true;
}

/* There will be no point: what names its images goes when they have gone. What is left is for
 * the next run to remove. */
static void drop_pending(struct backup_command *c)
{
    CLEANUP(free) char *pending = set_pending_name(c->set->id);
    bool left = false;
    struct err err = ERR_INIT;

    for (size_t i = 0; i < c->n_disks; i++) {
        const struct backup_disk *d = &c->disks[i];

        left |= access(d->made, F_OK) == 0 ||
                (d->target.partial && access(d->target.partial, F_OK) == 0);
        if (c->set->m.disks.n && set_manifest_disk(&c->set->m, i)->has_digest)
            left |= !set_file_remove(c->set->dir, set_manifest_disk(&c->set->m, i)->digest.file,
                                     &err);
    }
    if (!left && !set_file_remove(c->set->dir, pending, &err))
        cli_failf("backup", "%s", err.text);
}

void backup_set_close(struct backup_command *c)
{
    struct backup_set *s = c->set;

    if (!s)
        return;
    if (s->pending && !s->recorded)
        drop_pending(c);
    for (size_t i = 0; i < s->n; i++) {
        free(s->disks[i].name);
        free(s->disks[i].reason);
        free(s->disks[i].bitmap);
        json_decref(s->disks[i].info);
    }
    free(s->disks);
    free(s->id);
    free(s->dir);
    set_manifest_done(&s->m);
    set_catalog_done(&s->catalog);
    if (s->lock >= 0)
        close(s->lock);
    free(MOVE(c->set));
}
