/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint list: the points of a backup set. Manifests and headers are read, no data: what
 * that shows to be broken is told.
 */
#include "app/cli.h"
#include "app/human.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "set/catalog.h"
#include <stdio.h>
#include <time.h>

static uint64_t allocated_of(const struct set_point *p)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < set_manifest_n_disks(&p->m); i++)
        sum += p->images[i].allocated;
    return sum;
}

/* ---- for programs ---------------------------------------------------------------------- */

static json_t *point_json(struct set_point *p)
{
    json_t *json = set_manifest_json(&p->m), *disks = json_object_get(json, "disks"), *disk;
    size_t i;

    json_array_foreach(disks, i, disk) {
        json_object_set_new(disk, "allocated", json_integer((json_int_t)p->images[i].allocated));
        if (p->images[i].backing)
            json_object_set_new(disk, "backing", schema_json_str(p->images[i].backing));
        if (p->images[i].broken)
            json_object_set_new(disk, "broken", schema_json_str(p->images[i].broken));
    }
    json_object_set_new(json, "kind", json_string(set_manifest_kind(&p->m)));
    json_object_set_new(json, "broken", json_boolean(p->broken));
    return json;
}

static json_t *set_json(struct set_catalog *c)
{
    json_t *points = json_array(), *pending = json_array(), *faults = json_array();
    json_t *unknown = json_array();

    for (size_t i = 0; i < c->n_points; i++)
        json_array_append_new(points, point_json(&c->points[i]));
    for (size_t i = 0; i < c->n_pending; i++)
        json_array_append_new(pending, json_string(c->pending[i].m.id));
    for (size_t i = 0; i < c->n_faults; i++)
        json_array_append_new(faults, json_pack("{s:o, s:o}", "file",
                                                schema_json_str(c->faults[i].file), "error",
                                                schema_json_str(c->faults[i].why)));
    for (size_t i = 0; i < c->n_unknown; i++)
        json_array_append_new(unknown, schema_json_str(c->unknown[i]));
    return json_pack("{s:s, s:o, s:o, s:o, s:o}", "set", c->uuid, "points", points, "unfinished",
                     pending, "unreadable", faults, "unknown", unknown);
}

/* ---- for people ------------------------------------------------------------------------ */

static void print_point(const struct set_point *p)
{
    CLEANUP_STRBUF struct strbuf disks = STRBUF_INIT;
    char copied[HUMAN_TEXT], stored[HUMAN_TEXT], instant[64];
    time_t seconds = (time_t)(p->m.instant / 1000);
    struct tm tm;

    localtime_r(&seconds, &tm);
    strftime(instant, sizeof(instant), "%Y-%m-%d %H:%M:%S", &tm);
    for (size_t i = 0; i < set_manifest_n_disks(&p->m); i++)
        strbuf_addf(&disks, "%s%s", i ? ", " : "", set_manifest_disk(&p->m, i)->name);
    printf("%-20s  %s  %-11s  %10s  %10s  %s\n", p->m.id, instant, set_manifest_kind(&p->m),
           human_size(set_manifest_bytes(&p->m), copied), human_size(allocated_of(p), stored),
           strbuf_text(&disks));
    for (size_t i = 0; i < set_manifest_n_disks(&p->m); i++) {
        const struct set_disk *d = set_manifest_disk(&p->m, i);

        /* The usual needs no words. */
        if (d->kind == SET_FULL)
            printf("  %s: full: %s\n", d->name, d->reason);
        if (p->images[i].broken)
            printf("  %s: BROKEN: %s\n", d->name, p->images[i].broken);
    }
}

static void print_set(const struct set_catalog *c)
{
    if (!c->n_points)
        puts("no points");
    else
        printf("%-20s  %-19s  %-11s  %10s  %10s  %s\n", "ID", "TIME", "KIND", "COPIED", "STORED",
               "DISKS");
    for (size_t i = 0; i < c->n_points; i++)
        print_point(&c->points[i]);
    if (c->n_pending)
        printf("%zu point%s being made or removed, or left so by a run that was killed: the next "
               "'stillpoint backup', 'forget' or 'prune' tidies up\n", c->n_pending,
               c->n_pending == 1 ? " is" : "s are");
    for (size_t i = 0; i < c->n_faults; i++)
        printf("%s cannot be read: %s\n", c->faults[i].file, c->faults[i].why);
    for (size_t i = 0; i < c->n_unknown; i++)
        printf("%s belongs to no point\n", c->unknown[i]);
}

int cmd_list(int argc, char **argv)
{
    bool json = false;
    const struct cli_option options[] = {
        { "json", 0, CLI_FLAG, &json, NULL, "for programs: every manifest, and what is broken" },
        { 0 },
    };
    const struct cli_command command = {
        "list", "DIR", 1, 1,
        "List the points of a backup set. Whether their data is whole, 'stillpoint verify' tells.",
        options, "  stillpoint list /backups/vm",
    };
    struct set_catalog c;
    struct err err = ERR_INIT;
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    if (!set_catalog_open(argv[first], &c, &err))
        return cli_fail(command.name, &err);
    if (json) {
        status = cli_put_json(command.name, set_json(&c));
    } else {
        print_set(&c);
        status = cli_end_output(command.name);
    }
    set_catalog_done(&c);
    return status;
}
