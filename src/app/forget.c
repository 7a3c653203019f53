/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint forget and prune: points go out of a backup set, those that a person names or
 * those that no rule keeps.
 */
#include "app/cli.h"
#include "app/image_name.h"
#include "app/set_remove.h"
#include "base/mem.h"
#include "set/lock.h"
#include "set/prune.h"
#include <stdio.h>
#include <unistd.h>

struct forget_command {
    const char *name;                /* the command */
    char *dir;
    int lock, style;
    bool dry_run;
    struct set_prune rules;
    struct set_catalog catalog;
    const char **ids;                /* to be removed; of the catalogue */
    size_t n;
    struct err err;
};

/* ---- what both do ----------------------------------------------------------------------- */

static bool begin(struct forget_command *c, const char *dir)
{
    c->lock = -1;
    c->dir = image_absolute_path(dir, &c->err);
    if (!c->dir || !set_catalog_open(c->dir, &c->catalog, &c->err))
        return false;
    if (c->dry_run)
        return true;
    /* What was there before we had the lock may have changed. */
    set_catalog_done(&c->catalog);
    c->lock = set_lock(c->dir, &c->err);
    return c->lock >= 0 && set_catalog_open(c->dir, &c->catalog, &c->err);
}

static void end(struct forget_command *c)
{
    set_catalog_done(&c->catalog);
    free(c->ids);
    free(c->dir);
    if (c->lock >= 0)
        close(c->lock);
}

static void add(struct forget_command *c, const char *id)
{
    c->ids = xrealloc(c->ids, (c->n + 1) * sizeof(*c->ids));
    c->ids[c->n++] = id;
}

static bool goes(const struct forget_command *c, const struct set_point *p)
{
    for (size_t i = 0; i < c->n; i++) {
        if (strcmp(c->ids[i], p->m.id) == 0)
            return true;
    }
    return false;
}

/* Disks whose last point goes have a bitmap that belongs to nothing then. */
static void warn_of_full(const struct forget_command *c)
{
    for (size_t i = 0; i < c->catalog.n_points; i++) {
        const struct set_point *p = &c->catalog.points[i];

        for (size_t k = 0; goes(c, p) && k < set_manifest_n_disks(&p->m); k++) {
            const char *disk = p->images[k].disk->name;

            if (set_catalog_last_of(&c->catalog, disk) == &p->images[k])
                printf("%s: its last point goes: the next backup of it is a full one\n", disk);
        }
    }
}

static int remove_them(struct forget_command *c)
{
    struct watch watch;
    struct set_remove r = { .dir = c->dir, .watch = &watch, .err = ERR_INIT };
    bool ok;

    if (!watch_begin(&watch, c->style, "merging", &c->err))
        return cli_fail(c->name, &c->err);
    warn_of_full(c);
    ok = set_remove_points(&r, c->ids, c->n);
    watch_end(&watch);
    if (r.removed)
        printf("%zu point%s removed, %zu image%s merged\n", r.removed, r.removed == 1 ? "" : "s",
               r.merged, r.merged == 1 ? "" : "s");
    if (ok)
        return cli_end_output(c->name);
    if (r.err.code == -ECANCELED && watch_cancelled(&watch)) {
        cli_failf(c->name, "cancelled. The set is valid, and the same command goes on with it");
        return EXIT_CANCELLED;
    }
    return cli_failf(c->name, "%s. The set is valid; 'stillpoint prune %s' without rules goes on "
                     "with freeing the space", r.err.text, c->dir);
}

/* ---- forget ---------------------------------------------------------------------------------- */

int cmd_forget(int argc, char **argv)
{
    struct forget_command c = { .name = "forget", .lock = -1 };
    const struct cli_option options[] = {
        CLI_PROGRESS(&c.style),
        { 0 },
    };
    const struct cli_command command = {
        "forget", "DIR ID...", 2, -1,
        "Remove points from a backup set. What later points need of them is merged into those,\n"
        "which read as before.",
        options, "  stillpoint forget /backups/vm 20261201T035705Z",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    if (!begin(&c, argv[first])) {
        end(&c);
        return cli_fail(c.name, &c.err);
    }
    for (int i = first + 1; i < argc; i++) {
        const struct set_point *p = set_catalog_point(&c.catalog, argv[i]);

        if (!p) {
            status = cli_failf(c.name, "The set '%s' has no point '%s': 'stillpoint list' shows "
                               "them", argv[first], argv[i]);
            end(&c);
            return status;
        }
        if (!goes(&c, p))
            add(&c, p->m.id);
    }
    status = remove_them(&c);
    end(&c);
    return status;
}

/* ---- prune ----------------------------------------------------------------------------------- */

/* "keep (daily, weekly)". */
static void print_fate(const struct set_point *p, unsigned mask)
{
    bool any = false;

    printf("%-20s  %s", p->m.id, mask ? "keep (" : "remove\n");
    for (unsigned rule = 0; rule < SET_KEEP_RULES; rule++) {
        if (mask & (1U << rule)) {
            printf("%s%s", any ? ", " : "", set_rule_names[rule]);
            any = true;
        }
    }
    if (mask)
        printf("%s)\n", mask & SET_KEPT_BROKEN ? "it is BROKEN; 'stillpoint forget' removes it"
                                               : "");
}

static int prune(struct forget_command *c)
{
    CLEANUP(free) unsigned *masks = set_prune_choose(&c->catalog, &c->rules);
    bool rules = false;

    for (unsigned i = 0; i < SET_KEEP_RULES; i++)
        rules |= c->rules.keep[i] > 0;
    for (size_t i = 0; rules && i < c->catalog.n_points; i++) {
        print_fate(&c->catalog.points[i], masks[i]);
        if (!masks[i])
            add(c, c->catalog.points[i].m.id);
    }
    return c->dry_run ? cli_end_output(c->name) : remove_them(c);
}

int cmd_prune(int argc, char **argv)
{
    struct forget_command c = { .name = "prune", .lock = -1 };
    const struct cli_option options[] = {
        { "keep-last", 0, CLI_NUMBER, &c.rules.keep[SET_KEEP_LAST], "N", "the last N points" },
        { "keep-daily", 0, CLI_NUMBER, &c.rules.keep[SET_KEEP_DAILY], "N",
          "the last point of each of the last N days that have one" },
        { "keep-weekly", 0, CLI_NUMBER, &c.rules.keep[SET_KEEP_WEEKLY], "N", "of weeks" },
        { "keep-monthly", 0, CLI_NUMBER, &c.rules.keep[SET_KEEP_MONTHLY], "N", "of months" },
        { "dry-run", 'n', CLI_FLAG, &c.dry_run, NULL, "only tell what would go" },
        CLI_PROGRESS(&c.style),
        { 0 },
    };
    const struct cli_command command = {
        "prune", "DIR", 1, 1,
        "Remove the points of a backup set that no rule keeps; of each disk by itself. What later\n"
        "points need of them is merged into those, which read as before. Without a rule no point\n"
        "is removed, and what was left half done is finished.",
        options, "  stillpoint prune /backups/vm --keep-last 3 --keep-daily 7 --keep-weekly 5",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    status = begin(&c, argv[first]) ? prune(&c) : cli_fail(c.name, &c.err);
    end(&c);
    return status;
}
