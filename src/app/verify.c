/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint verify: whether the points of a backup set can be restored. Reads everything that
 * they consist of, and names what is broken and what is still good.
 */
#include "app/cli.h"
#include "app/human.h"
#include "app/offline.h"
#include "app/verify_image.h"
#include "base/limits.h"
#include "base/mem.h"
#include "set/name.h"
#include <inttypes.h>
#include <stdio.h>

#define EXIT_BROKEN 3

struct verify_command {
    const char *dir, *at;
    bool json;
    int style;
    struct watch watch;
    struct set_catalog catalog;

    const struct set_image **images;     /* to be verified, each once */
    bool *bad;                           /* of each of them */
    size_t n_images, now;
    json_t *findings;                    /* for programs */
    uint64_t n_findings, bytes;
    uint64_t began;                      /* loop_now time */
    struct err err;
};

/* ---- which ------------------------------------------------------------------------------ */

static size_t index_of(const struct verify_command *c, const struct set_image *im)
{
    size_t i = 0;

    while (i < c->n_images && c->images[i] != im)
        i++;
    return i;
}

/* The image and what it stands on. */
static void add_image(struct verify_command *c, const struct set_image *im)
{
    for (; im && index_of(c, im) == c->n_images; im = im->below) {
        c->images = xrealloc(c->images, (c->n_images + 1) * sizeof(im));
        c->images[c->n_images++] = im;
    }
}

static void add_point(struct verify_command *c, const struct set_point *p)
{
    for (size_t i = 0; i < p->m.disks.n; i++)
        add_image(c, &p->images[i]);
}

/* ---- what is found ---------------------------------------------------------------------- */

static void found(void *arg, const struct verify_finding *f)
{
    struct verify_command *c = arg;
    json_t *json;

    c->n_findings++;
    if (f->image)
        c->bad[c->now] = true;
    if (c->n_findings > LIMIT_VERIFY_FINDINGS)
        return;
    json = json_pack("{s:o, s:o}", "file", schema_json_str(f->file), "what",
                     schema_json_str(f->what));
    if (f->image) {
        json_object_set_new(json, "disk", schema_json_str(f->image->disk->name));
        json_object_set_new(json, "point", schema_json_str(f->image->point->m.id));
    }
    if (f->extent_of) {
        json_object_set_new(json, "extent-of", json_string(f->extent_of));
        json_object_set_new(json, "offset", json_integer((json_int_t)f->off));
        json_object_set_new(json, "length", json_integer((json_int_t)f->len));
    }
    json_array_append_new(c->findings, json);
    if (c->json)
        return;
    progress_clear(&c->watch.progress);
    if (f->extent_of)
        printf("%s: bytes %" PRIu64 " to %" PRIu64 " of the %s%s%s: %s\n", f->file, f->off,
               f->off + f->len - 1, f->extent_of, strcmp(f->extent_of, "disk") == 0 ? " " : "",
               strcmp(f->extent_of, "disk") == 0 ? f->image->disk->name : "", f->what);
    else
        printf("%s: %s\n", f->file, f->what);
}

static void find_faults(struct verify_command *c)
{
    for (size_t i = 0; i < c->catalog.n_faults; i++) {
        const struct verify_finding f = { .file = c->catalog.faults[i].file,
                                          .what = c->catalog.faults[i].why };

        found(c, &f);
    }
}

/* What a flipped bit has made something else of has no checksum any more. */
static void find_without_checksum(struct verify_command *c, const struct set_point *only)
{
    for (size_t i = 0; i < c->catalog.n_points; i++) {
        const struct set_point *p = &c->catalog.points[i];
        CLEANUP(free) char *file = set_manifest_name(p->m.id);
        const struct verify_finding f = { .file = file, .what = "the manifest has no checksum" };

        if ((!only || p == only) && !p->m.has_checksum)
            found(c, &f);
    }
}

static int co_verify(void *arg)
{
    struct verify_command *c = arg;
    struct verify_image v = {
        .catalog = &c->catalog, .watch = &c->watch, .found = found, .arg = c,
    };

    for (size_t i = 0; i < c->n_images; i++)
        v.total += verify_image_work(&c->catalog, c->images[i]);
    for (c->now = 0; c->now < c->n_images; c->now++) {
        v.image = c->images[c->now];
        if (!co_verify_image(&v, &c->err))
            return c->err.code;
        v.base += verify_image_work(&c->catalog, v.image);
    }
    c->bytes = v.bytes;
    return 0;
}

/* ---- the verdict ------------------------------------------------------------------------ */

static bool is_good(const struct verify_command *c, const struct set_point *p)
{
    for (size_t i = 0; i < p->m.disks.n; i++) {
        for (const struct set_image *im = &p->images[i]; im; im = im->below) {
            if (im->broken || c->bad[index_of(c, im)])
                return false;
        }
    }
    return true;
}

static bool is_meant(const struct verify_command *c, const struct set_point *p)
{
    return !p->m.disks.n || index_of(c, &p->images[0]) < c->n_images;
}

static int verdict(struct verify_command *c, const struct set_point *only)
{
    double seconds = (double)MAX(loop_now() - c->began, NSEC_PER_MSEC) / NSEC_PER_SEC;
    char bytes[HUMAN_TEXT], rate[HUMAN_TEXT];
    json_t *points = json_array();
    size_t good = 0, n = 0;

    for (size_t i = 0; i < c->catalog.n_points; i++) {
        const struct set_point *p = &c->catalog.points[i];

        if ((only && p != only) || !is_meant(c, p))
            continue;
        n++;
        good += is_good(c, p);
        json_array_append_new(points, json_pack("{s:s, s:s, s:b}", "id", p->m.id, "instant",
                                                p->m.instant_text, "good", is_good(c, p)));
        if (!c->json && c->n_findings)
            printf("%s  %s  %s\n", is_good(c, p) ? "good  " : "broken", p->m.id,
                   p->m.instant_text);
    }
    if (c->json) {
        int status = cli_put_json("verify", json_pack(
            "{s:o, s:O, s:I, s:I}", "points", points, "findings", c->findings,
            "findings-in-all", (json_int_t)c->n_findings, "bytes", (json_int_t)c->bytes));

        return status == EXIT_OK && c->n_findings ? EXIT_BROKEN : status;
    }
    json_decref(points);
    printf("%zu of %zu points are good; %s read, %s/s\n", good, n, human_size(c->bytes, bytes),
           human_size((uint64_t)((double)c->bytes / seconds), rate));
    int status = cli_end_output("verify");
    return status == EXIT_OK && c->n_findings ? EXIT_BROKEN : status;
}

static int run(struct verify_command *c)
{
    const struct set_point *only = NULL;

    if (c->at) {
        only = set_catalog_find(&c->catalog, c->at, &c->err);
        if (!only)
            return cli_fail("verify", &c->err);
        add_point(c, only);
    }
    for (size_t i = 0; !only && i < c->catalog.n_points; i++)
        add_point(c, &c->catalog.points[i]);
    c->bad = xcalloc(MAX(c->n_images, (size_t)1), sizeof(*c->bad));
    if (!only)
        find_faults(c);
    find_without_checksum(c, only);
    if (offline_run(co_verify, c, &c->err) < 0) {
        progress_clear(&c->watch.progress);
        cli_fail("verify", &c->err);
        return watch_cancelled(&c->watch) ? EXIT_CANCELLED : EXIT_FAILED;
    }
    progress_clear(&c->watch.progress);
    return verdict(c, only);
}

int cmd_verify(int argc, char **argv)
{
    struct verify_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
        { "at", 0, CLI_TEXT, &c.at, "POINT", "only this point: its id, or a time" },
        { "json", 0, CLI_FLAG, &c.json, NULL, "for programs" },
        CLI_PROGRESS(&c.style),
        { 0 },
    };
    const struct cli_command command = {
        "verify", "DIR", 1, 1,
        "Read all that the points of a backup set consist of, and see whether it is what it was\n"
        "when the backups were made. Exits with 0 if it is, 3 if something is broken: what, and\n"
        "which points are good all the same, is told; 1 if that could not be found out.",
        options,
        "  stillpoint verify /backups/vm\n"
        "  stillpoint verify /backups/vm --at 2026-12-01",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.dir = argv[first];
    c.began = loop_now();
    if (!set_catalog_open(c.dir, &c.catalog, &c.err)) {
        cli_fail("verify", &c.err);
        return c.err.code == -EBADMSG || c.err.code == -EINVAL ? EXIT_BROKEN : EXIT_FAILED;
    }
    if (!watch_begin(&c.watch, c.json ? PROGRESS_NONE : c.style, c.dir, &c.err))
        status = cli_fail("verify", &c.err);
    else {
        c.findings = json_array();
        status = run(&c);
        json_decref(c.findings);
        watch_end(&c.watch);
    }
    free(c.images);
    free(c.bad);
    set_catalog_done(&c.catalog);
    return status;
}
