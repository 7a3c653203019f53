/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint backup --to: the disks. Full or incremental, and why (docs/backup-sets.md, I-M9);
 * and their bitmaps (I-M7, I-M8).
 */
#include "app/backup_command.h"
#include "app/backup_set.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/served.h"
#include "base/mem.h"
#include "set/name.h"
#include <stdio.h>
#include <time.h>

/* ---- what the daemon says ------------------------------------------------------------- */

static uint64_t number(const json_t *json, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(json, key));

    return v > 0 ? (uint64_t)v : 0;
}

static const char *text(const json_t *json, const char *key)
{
    return json_string_value(json_object_get(json, key));
}

const json_t *backup_set_find_bitmap(const struct backup_set_disk *d, const char *name)
{
    json_t *bm;
    size_t i;

    json_array_foreach(json_object_get(d->info, "dirty-bitmaps"), i, bm) {
        const char *its = text(bm, "name");

        if (its && strcmp(its, name) == 0)
            return bm;
    }
    return NULL;
}

static const char *node_of(const struct backup_set_disk *d)
{
    return text(d->info, "node-name");
}

static uint64_t size_of(const struct backup_set_disk *d)
{
    return number(json_object_get(d->info, "image"), "virtual-size");
}

/* ---- full or incremental ---------------------------------------------------------------- */

/* Why the bitmap of the point before is of no use; NULL: it is. free() it. */
static char *bitmap_fault(const struct backup_command *c, const struct backup_set_disk *d,
                          const struct set_image *last)
{
    CLEANUP(free) char *name = set_bitmap_name(c->set->catalog.uuid, last->point->m.id);
    const json_t *bm = backup_set_find_bitmap(d, name);
    const char *why = text(bm, "inconsistent-reason");

    if (!bm && !last->disk->has_bitmap)
        return xasprintf("no bitmap could be kept since %s", last->point->m.id);
    if (!bm)
        return xasprintf("no bitmap since %s: it was removed, or this is another disk",
                         last->point->m.id);
    if (json_is_true(json_object_get(bm, "inconsistent")))
        return xasprintf("bitmap inconsistent: %s", why ? why : "it missed writes");
    if (json_is_true(json_object_get(bm, "busy")))
        return xstrdup("the bitmap is in use by another operation");
    if (!json_is_true(json_object_get(bm, "recording")))
        return xstrdup("the bitmap was disabled");
    return NULL;
}

/* Why it has to be a full one; NULL: it need not. free() it. */
static char *why_full(const struct backup_command *c, const struct backup_set_disk *d,
                      const struct set_image *last)
{
    char was[HUMAN_TEXT], is[HUMAN_TEXT];

    if (c->full)
        return xstrdup("--full was asked for");
    if (!last)
        return xstrdup("first backup of this disk");
    if (last->broken)
        return xasprintf("the point before, %s, is broken: %s", last->point->m.id, last->broken);
    if (last->disk->size != size_of(d))
        return xasprintf("the disk was resized from %s to %s", human_size(last->disk->size, was),
                         human_size(size_of(d), is));
    return bitmap_fault(c, d, last);
}

/* What there is to copy, as far as it can be told. */
static uint64_t estimate(const struct backup_command *c, const struct backup_set_disk *d)
{
    const json_t *image = json_object_get(d->info, "image");
    CLEANUP(free) char *name = NULL;

    if (d->parent) {
        name = set_bitmap_name(c->set->catalog.uuid, d->parent->point->m.id);
        return MIN(number(backup_set_find_bitmap(d, name), "count"), size_of(d));
    }
    /* Of a chain only the topmost image is told. */
    if (text(image, "backing-filename") || !json_object_get(image, "actual-size"))
        return size_of(d);
    return MIN(number(image, "actual-size"), size_of(d));
}

static void decide(const struct backup_command *c, struct backup_set_disk *d)
{
    const struct set_image *last = set_catalog_last_of(&c->set->catalog, d->name);

    d->reason = why_full(c, d, last);
    if (!d->reason) {
        d->parent = last;
        d->reason = xasprintf("changes since %s", last->point->m.id);
    }
    d->to_copy = estimate(c, d);
}

static bool check_name(const struct backup_command *c, size_t i, struct err *err)
{
    const struct backup_set_disk *d = &c->set->disks[i];

    if (c->control && strchr(c->disks[i].source, '/'))
        return err_set(err, -EINVAL, "'%s' is not the name of a disk. For files that nobody has "
                       "open say --control ''", c->disks[i].source);
    if (!*d->name)
        return err_set(err, -EINVAL, "'%s' has no name that a disk could have in a set",
                       c->disks[i].source);
    for (size_t k = 0; k < i; k++) {
        if (strcmp(c->disks[i].source, c->disks[k].source) == 0)
            return err_set(err, -EEXIST, "'%s' is named twice", c->disks[i].source);
        if (strcmp(d->name, c->set->disks[k].name) == 0)
            return err_set(err, -EEXIST, "'%s' and '%s' would both be the disk '%s'",
                           c->disks[k].source, c->disks[i].source, d->name);
    }
    return true;
}

bool backup_set_plan(struct backup_command *c)
{
    struct err *err = &c->run.err;

    for (size_t i = 0; i < c->n_disks; i++) {
        struct backup_set_disk *d = &c->set->disks[i];
        const char *source = c->disks[i].source;

        d->name = c->control ? xstrdup(source) : image_disk_name(source);
        if (!check_name(c, i, err))
            return false;
    }
    for (size_t i = 0; i < c->n_disks; i++) {
        struct backup_set_disk *d = &c->set->disks[i];

        d->info = served_find(c->run.client, c->control ? c->control : "", c->disks[i].node, err);
        if (!d->info)
            return false;
        decide(c, d);
    }
    return true;
}

bool backup_set_arguments(const struct backup_command *c, size_t i, json_t *args,
                          struct err *err)
{
    const struct backup_set_disk *d = &c->set->disks[i];
    CLEANUP(free) char *bitmap = NULL;

    if (!d->parent)
        return true;
    bitmap = set_bitmap_name(c->set->catalog.uuid, d->parent->point->m.id);
    json_object_set_new(args, "sync", json_string("bitmap"));
    json_object_set_new(args, "bitmap", json_string(bitmap));
    /* It stays as it is until the point exists. */
    json_object_set_new(args, "bitmap-mode", json_string("never"));
    json_object_set_new(args, "backing-fmt", json_string("qcow2"));
    return json_object_set_new(args, "backing-file", json_string(d->parent->disk->file)) == 0 ||
           err_set(err, -EILSEQ, "The name '%s' has bytes that are not UTF-8",
                   d->parent->disk->file);
}

/* ---- bitmaps ------------------------------------------------------------------------------ */

static json_t *bitmap_ref(const struct backup_set_disk *d, const char *name)
{
    return json_pack("{s:s, s:s}", "node", node_of(d), "name", name);
}

void backup_set_add_bitmaps(struct backup_command *c)
{
    for (size_t i = 0; i < c->n_disks; i++) {
        struct backup_set_disk *d = &c->set->disks[i];
        CLEANUP(free) char *name = set_bitmap_name(c->set->catalog.uuid, c->set->id);
        json_t *args = bitmap_ref(d, name);
        struct err err = ERR_INIT;

        json_object_set_new(args, "persistent", json_true());
        if (qmp_client_execute(c->run.client, "block-dirty-bitmap-add", args, NULL, &err)) {
            d->bitmap = MOVE(name);
            continue;
        }
        progress_clear(&c->progress);
        fprintf(stderr, "stillpoint backup: '%s': the next backup will be a full one again, for "
                "nothing can keep what is written from now on: %s\n", d->name, err.text);
    }
}

/* One that stays is removed by the next run. */
static bool remove_bitmap(struct backup_command *c, const struct backup_set_disk *d,
                          const char *name)
{
    return qmp_client_execute(c->run.client, "block-dirty-bitmap-remove", bitmap_ref(d, name),
                              NULL, NULL);
}

/* Those of this set but @keep. */
static void remove_bitmaps(struct backup_command *c, struct backup_set_disk *d, const char *keep)
{
    CLEANUP(free) char *prefix = set_bitmap_prefix(c->set->catalog.uuid);
    json_t *bm;
    size_t i;

    json_array_foreach(json_object_get(d->info, "dirty-bitmaps"), i, bm) {
        const char *name = text(bm, "name");

        if (!name || strncmp(name, prefix, strlen(prefix)) != 0 ||
            (keep && strcmp(name, keep) == 0))
            continue;
        (void)remove_bitmap(c, d, name);
    }
}

void backup_set_settle(struct backup_command *c)
{
    struct backup_set *s = c->set;

    for (size_t i = 0; s && c->run.client && i < s->n; i++) {
        struct backup_set_disk *d = &s->disks[i];

        if (s->recorded)
            remove_bitmaps(c, d, d->bitmap);
        else if (d->bitmap)
            (void)remove_bitmap(c, d, d->bitmap);
    }
}

/* ---- jobs of a run that was killed ---------- */

char *backup_set_job_suffix(const struct backup_command *c)
{
    return xasprintf("-%.8s", c->set->catalog.uuid);
}

/* The first job of this set, which nobody waits for: we have the lock. free() it. */
static char *find_stale_job(struct backup_command *c, struct err *err)
{
    CLEANUP(json_decref) json_t *jobs = NULL;
    CLEANUP(free) char *suffix = backup_set_job_suffix(c);
    json_t *job;
    size_t i;

    if (!qmp_client_execute(c->run.client, "query-block-jobs", NULL, &jobs, err))
        return NULL;
    json_array_foreach(jobs, i, job) {
        const char *id = text(job, "device");
        size_t n = id ? strlen(id) : 0;

        if (n > strlen(suffix) && strcmp(id + n - strlen(suffix), suffix) == 0)
            return xstrdup(id);
    }
    return NULL;
}

bool backup_set_end_stale_jobs(struct backup_command *c)
{
    const struct timespec pause = { .tv_nsec = 50 * NSEC_PER_MSEC };
    struct err *err = &c->run.err;

    for (unsigned i = 0; i < 200 && !c->interrupt.count; i++) {
        CLEANUP(free) char *id = find_stale_job(c, err);

        if (!id)
            return err->code == 0;
        /* It may have ended by itself just now; then the next look tells. */
        if (qmp_client_execute(c->run.client, "block-job-cancel",
                               json_pack("{s:s, s:b}", "device", id, "force", 1), NULL, NULL))
            nanosleep(&pause, NULL);
    }
    return err_set(err, -EBUSY, "A job of an earlier run on the set '%s', which was killed, does "
                   "not end: 'stillpoint jobs' shows it", c->to);
}

/* ---- telling ---------- */

static const char *kind_of(const struct backup_set_disk *d)
{
    return set_kind_names[d->parent ? SET_INCREMENTAL : SET_FULL];
}

void backup_set_tell_plan(const struct backup_command *c)
{
    for (size_t i = 0; progress_for_people(&c->progress) && i < c->set->n; i++)
        printf("%s: %s (%s)\n", c->set->disks[i].name, kind_of(&c->set->disks[i]),
               c->set->disks[i].reason);
}

static json_t *dry_json(const struct backup_command *c)
{
    json_t *disks = json_array();

    for (size_t i = 0; i < c->set->n; i++) {
        const struct backup_set_disk *d = &c->set->disks[i];
        json_t *one = json_pack("{s:o, s:s, s:o, s:I, s:I}", "name", schema_json_str(d->name),
                                "kind", kind_of(d), "reason", schema_json_str(d->reason), "size",
                                (json_int_t)size_of(d), "to-copy", (json_int_t)d->to_copy);

        if (d->parent)
            json_object_set_new(one, "parent", json_string(d->parent->point->m.id));
        json_array_append_new(disks, one);
    }
    return json_pack("{s:o}", "disks", disks);
}

int backup_set_tell_dry(const struct backup_command *c)
{
    uint64_t sum = 0;
    char a[HUMAN_TEXT], b[HUMAN_TEXT];

    if (c->json)
        return cli_put_json("backup", dry_json(c));
    for (size_t i = 0; i < c->set->n; i++) {
        const struct backup_set_disk *d = &c->set->disks[i];

        printf("%s: %s (%s), about %s of %s\n", d->name, kind_of(d), d->reason,
               human_size(d->to_copy, a), human_size(size_of(d), b));
        sum += d->to_copy;
    }
    if (c->scratch_limit)
        sum = MIN(sum, c->scratch_limit);
    if (c->control)
        printf("Scratch: nothing unless the disks are written meanwhile; %s at most\n",
               human_size(sum, a));
    return cli_end_output("backup");
}
