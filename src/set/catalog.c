/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading a backup set's directory. First the names, then the manifests, then the images'
 * headers; at last what stands on what.
 */
#include "set/catalog.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/format.h"
#include "set/file.h"
#include "set/name.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define PEEK_BYTES 24

/* ---- the directory's names ---------------------------------------------------------- */

struct names {
    char **v;
    size_t n;
};

static void names_done(struct names *names)
{
    for (size_t i = 0; i < names->n; i++)
        free(names->v[i]);
    free(names->v);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool list_names(const char *dir, struct names *ret, struct err *err)
{
    DIR *d = opendir(dir);
    struct dirent *e;

    *ret = (struct names){ 0 };
    if (!d)
        return err_errno(err, -errno, "The set '%s' cannot be looked into", dir);
    while ((e = readdir(d))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (ret->n >= 8 * LIMIT_SET_POINTS) {
            closedir(d);
            names_done(ret);
            return err_set(err, -EFBIG, "'%s' has more files than any set", dir);
        }
        if (!(ret->n & (ret->n - 1)))
            ret->v = xrealloc(ret->v, MAX(2 * ret->n, (size_t)1) * sizeof(*ret->v));
        ret->v[ret->n++] = xstrdup(e->d_name);
    }
    closedir(d);
    if (ret->n)
        qsort(ret->v, ret->n, sizeof(*ret->v), by_text);
    return true;
}

static bool has_name(const struct names *names, const char *name)
{
    return names->n && bsearch(&name, names->v, names->n, sizeof(*names->v), by_text);
}

bool set_dir_is_empty(const char *dir, bool *ret, struct err *err)
{
    struct names names;

    if (!list_names(dir, &names, err))
        return false;
    *ret = true;
    for (size_t i = 0; i < names.n; i++)
        *ret &= strcmp(names.v[i], SET_LOCK) == 0 || strcmp(names.v[i], "lost+found") == 0 ||
                strcmp(names.v[i], "." SET_FILE ".new") == 0;
    names_done(&names);
    return true;
}

/* ---- manifests ------------------------------------------------------------------------ */

static void add_fault(struct set_catalog *c, const char *file, const char *why)
{
    c->faults = xrealloc(c->faults, (c->n_faults + 1) * sizeof(*c->faults));
    c->faults[c->n_faults++] = (struct set_fault){ xstrdup(file), xstrdup(why) };
}

static bool read_manifest(const struct set_catalog *c, const char *file, const char *id,
                          struct set_manifest *ret, struct err *err)
{
    size_t len;
    CLEANUP(free) char *text = set_file_read(c->dir, file, LIMIT_SET_MANIFEST_BYTES, &len, err);

    if (!text || !set_manifest_parse(text, len, ret, err))
        return false;
    if (strcmp(ret->id, id) != 0)
        err_set(err, -EINVAL, "It is the manifest of another point, '%s'", ret->id);
    else if (strcmp(ret->set, c->uuid) != 0)
        err_set(err, -EINVAL, "It is of another set, '%s'", ret->set);
    else
        return true;
    set_manifest_done(ret);
    return false;
}

static void add_point(struct set_point **v, size_t *n, struct set_manifest *m)
{
    *v = xrealloc(*v, (*n + 1) * sizeof(**v));
    (*v)[(*n)++] = (struct set_point){ .m = *m };
}

static void read_manifests(struct set_catalog *c, const struct names *names)
{
    for (size_t i = 0; i < names->n; i++) {
        const char *file = names->v[i];
        CLEANUP(free) char *id = set_id_of_manifest(file);
        CLEANUP(free) char *pending = id ? NULL : set_id_of_pending(file);
        struct set_manifest m;
        struct err err = ERR_INIT;

        if (!id && !pending)
            continue;
        if (read_manifest(c, file, id ? id : pending, &m, &err))
            add_point(id ? &c->points : &c->pending, id ? &c->n_points : &c->n_pending, &m);
        else if (err.code != -ENOENT)
            add_fault(c, file, err.text);
    }
}

static int by_sequence(const void *a, const void *b)
{
    const struct set_point *p = a, *q = b;

    if (p->m.sequence != q->m.sequence)
        return p->m.sequence < q->m.sequence ? -1 : 1;
    return strcmp(p->m.id, q->m.id);
}

/* ---- images ----------------------------------------------------------------------------- */

static char *why_missing(const char *file)
{
    return xasprintf("'%s' is missing", file);
}

/* The header of an image, or why there is none. free() both. */
static struct qcow2_header *read_header(int fd, char **ret_why)
{
    CLEANUP(free) struct qcow2_header *h = xnew(struct qcow2_header);
    uint8_t peek[PEEK_BYTES];
    ssize_t n = pread(fd, peek, sizeof(peek), 0);
    uint32_t bytes = n < (ssize_t)sizeof(peek) ? 0 : qcow2_peek_cluster_size(peek, sizeof(peek));
    CLEANUP(free) void *buf = bytes ? xmalloc(bytes) : NULL;
    struct err err = ERR_INIT;

    if (n < 0 || (buf && (n = pread(fd, buf, bytes, 0)) < 0))
        err_errno(&err, -errno, "it cannot be read");
    else if (!buf)
        err_set(&err, -EINVAL, "it is not a qcow2 image");
    else if (qcow2_header_parse(buf, (size_t)n, h, &err))
        return MOVE(h);
    *ret_why = xstrdup(err.text);
    return NULL;
}

/* Only a name in this directory is followed. */
static char *check_header(const struct qcow2_header *h, const struct set_image *im)
{
    if (h->size != im->disk->size)
        return xasprintf("'%s' is a disk of %llu bytes, and the manifest says %llu", im->disk->file,
                         (unsigned long long)h->size, (unsigned long long)im->disk->size);
    if (h->has_backing && !set_file_wellformed(h->backing_file))
        return xasprintf("'%s' stands on '%.200s', which is no file of the set", im->disk->file,
                         h->backing_file);
    if (*h->data_file || (h->incompatible & QCOW2_INCOMPAT_DATA_FILE))
        return xasprintf("'%s' has its data in another file", im->disk->file);
    if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return xasprintf("'%s' is marked as corrupt", im->disk->file);
    return NULL;
}

static void look_at(const struct set_catalog *c, struct set_image *im)
{
    CLEANUP(free) char *path = xasprintf("%s/%s", c->dir, im->disk->file);
    CLEANUP(free) struct qcow2_header *h = NULL;
    CLEANUP(free) char *why = NULL;
    __attribute__((cleanup(cleanup_close)))
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0) {
        im->broken = errno == ENOENT ? why_missing(im->disk->file)
                                     : xasprintf("'%s': %s", im->disk->file, strerror(errno));
        return;
    }
    im->allocated = (uint64_t)st.st_blocks * 512;
    h = S_ISREG(st.st_mode) ? read_header(fd, &why) : NULL;
    if (!h) {
        im->broken = xasprintf("'%s': %s", im->disk->file, why ? why : "it is not a file");
        return;
    }
    im->broken = check_header(h, im);
    if (h->has_backing && !im->broken)
        im->backing = xstrdup(h->backing_file);
}

static void make_images(struct set_point *p)
{
    p->images = xcalloc(p->m.disks.n, sizeof(*p->images));
    for (size_t i = 0; i < p->m.disks.n; i++) {
        p->images[i].disk = set_manifest_disk(&p->m, i);
        p->images[i].point = p;
    }
}

static void look_at_all(const struct set_catalog *c, struct set_point *points, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        make_images(&points[i]);
        for (size_t k = 0; k < points[i].m.disks.n; k++)
            look_at(c, &points[i].images[k]);
    }
}

/* ---- what stands on what ------------------------------------------------------------------ */

struct index {
    struct set_image **v;            /* by file name */
    size_t n;
};

static int by_file(const void *a, const void *b)
{
    const struct set_image *p = *(struct set_image *const *)a, *q = *(struct set_image *const *)b;

    return strcmp(p->disk->file, q->disk->file);
}

static struct set_image *find(const struct index *index, const char *file)
{
    size_t low = 0, high = index->n;

    while (low < high) {
        size_t middle = (low + high) / 2;
        int r = strcmp(file, index->v[middle]->disk->file);

        if (r == 0)
            return index->v[middle];
        if (r < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static void add_all(struct index *index, struct set_point *points, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < points[i].m.disks.n; k++)
            index->v[index->n++] = &points[i].images[k];
    }
}

static size_t count_images(const struct set_point *points, size_t n)
{
    size_t sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += points[i].m.disks.n;
    return sum;
}

/* What is broken below breaks what stands on it. A chain longer than there are images goes in
 * a circle. */
static void break_chain(struct set_image *im, size_t n_images, const struct names *names)
{
    const struct set_image *at = im;

    for (size_t depth = 0; !im->broken && at; depth++) {
        if (at->broken && at != im)
            im->broken = xstrdup(at->broken);
        else if (at->backing && !at->below && has_name(names, at->backing))
            im->broken = xasprintf("'%s' stands on '%s', whose manifest is missing",
                                   at->disk->file, at->backing);
        else if (at->backing && !at->below)
            im->broken = why_missing(at->backing);
        else if (depth > n_images)
            im->broken = xasprintf("'%s' stands on itself", im->disk->file);
        at = at->below;
    }
}

static void link_images(struct set_catalog *c, const struct names *names)
{
    size_t n = count_images(c->points, c->n_points) + count_images(c->pending, c->n_pending);
    struct index index = { .v = xcalloc(MAX(n, (size_t)1), sizeof(*index.v)) };

    add_all(&index, c->points, c->n_points);
    add_all(&index, c->pending, c->n_pending);
    qsort(index.v, index.n, sizeof(*index.v), by_file);
    for (size_t i = 0; i < index.n; i++) {
        if (index.v[i]->backing)
            index.v[i]->below = find(&index, index.v[i]->backing);
    }
    for (size_t i = 0; i < index.n; i++)
        break_chain(index.v[i], n, names);
    for (size_t i = 0; i < c->n_points; i++) {
        for (size_t k = 0; k < c->points[i].m.disks.n; k++)
            c->points[i].broken |= c->points[i].images[k].broken != NULL;
    }
    free(index.v);
}

/* ---- what nobody names -------------------------------------------------------------------- */

static void add_name(char ***v, size_t *n, const char *name)
{
    *v = xrealloc(*v, (*n + 1) * sizeof(**v));
    (*v)[(*n)++] = xstrdup(name);
}

static void add_known_of(struct names *known, const struct set_point *points, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < points[i].m.disks.n; k++) {
            const struct set_disk *d = set_manifest_disk(&points[i].m, k);

            add_name(&known->v, &known->n, d->file);
            if (d->has_digest)
                add_name(&known->v, &known->n, d->digest.file);
        }
    }
}

static void find_unknown(struct set_catalog *c, const struct names *names)
{
    struct names known = { 0 };

    add_known_of(&known, c->points, c->n_points);
    add_known_of(&known, c->pending, c->n_pending);
    if (known.n)
        qsort(known.v, known.n, sizeof(*known.v), by_text);
    for (size_t i = 0; i < names->n; i++) {
        CLEANUP(free) char *id = set_id_of_manifest(names->v[i]);

        if (set_name_is_temporary(names->v[i]))
            add_name(&c->temporary, &c->n_temporary, names->v[i]);
        /* Other hidden ones are of programs at work. */
        if (id || *names->v[i] == '.' || strcmp(names->v[i], SET_FILE) == 0 ||
            strcmp(names->v[i], "lost+found") == 0 || has_name(&known, names->v[i]))
            continue;
        add_name(&c->unknown, &c->n_unknown, names->v[i]);
    }
    names_done(&known);
}

/* ---- the whole ------------------------------------------------------------------------------ */

static char *read_uuid(const char *dir, struct err *err)
{
    size_t len;
    CLEANUP(free) char *text = set_file_read(dir, SET_FILE, LIMIT_SET_MANIFEST_BYTES, &len, err);
    char *uuid = text ? set_description_parse(text, len, err) : NULL;

    if (!text && err->code == -ENOENT && access(dir, F_OK) < 0)
        err_set(err, -ENOENT, "There is no backup set '%s'", dir);
    else if (!text && err->code == -ENOENT)
        err_set(err, -ENODATA, "'%s' is not a backup set: it has no '" SET_FILE "'", dir);
    else if (text && !uuid)
        err_prefix(err, "'%s/" SET_FILE "': ", dir);
    return uuid;
}

bool set_catalog_open(const char *dir, struct set_catalog *ret, struct err *err)
{
    struct err own = ERR_INIT;
    char *uuid = read_uuid(dir, &own);
    struct names names;

    *ret = (struct set_catalog){ 0 };
    if (!uuid || !list_names(dir, &names, &own)) {
        free(uuid);
        if (err)
            *err = own;
        return false;
    }
    ret->dir = xstrdup(dir);
    ret->uuid = uuid;
    read_manifests(ret, &names);
    if (ret->n_points)
        qsort(ret->points, ret->n_points, sizeof(*ret->points), by_sequence);
    look_at_all(ret, ret->points, ret->n_points);
    look_at_all(ret, ret->pending, ret->n_pending);
    link_images(ret, &names);
    find_unknown(ret, &names);
    names_done(&names);
    return true;
}

static void free_points(struct set_point *points, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; points[i].images && k < points[i].m.disks.n; k++) {
            free(points[i].images[k].backing);
            free(points[i].images[k].broken);
        }
        free(points[i].images);
        set_manifest_done(&points[i].m);
    }
    free(points);
}

void set_catalog_done(struct set_catalog *c)
{
    free_points(c->points, c->n_points);
    free_points(c->pending, c->n_pending);
    for (size_t i = 0; i < c->n_faults; i++) {
        free(c->faults[i].file);
        free(c->faults[i].why);
    }
    free(c->faults);
    for (size_t i = 0; i < c->n_unknown; i++)
        free(c->unknown[i]);
    free(c->unknown);
    for (size_t i = 0; i < c->n_temporary; i++)
        free(c->temporary[i]);
    free(c->temporary);
    free(c->dir);
    free(c->uuid);
    *c = (struct set_catalog){ 0 };
}

/* ---- finding -------------------------------------------------------------------------------- */

const struct set_point *set_catalog_point(const struct set_catalog *c, const char *id)
{
    for (size_t i = 0; i < c->n_points; i++) {
        if (strcmp(c->points[i].m.id, id) == 0)
            return &c->points[i];
    }
    return NULL;
}

static const struct set_point *find_by_time(const struct set_catalog *c, int64_t ms)
{
    const struct set_point *best = NULL;

    for (size_t i = 0; i < c->n_points; i++) {
        const struct set_point *p = &c->points[i];

        if (p->m.instant <= ms && (!best || p->m.instant >= best->m.instant))
            best = p;
    }
    return best;
}

/* The one whose id begins so; NULL with *ret_n other than 1. */
static const struct set_point *find_by_beginning(const struct set_catalog *c, const char *at,
                                                 size_t *ret_n)
{
    const struct set_point *found = NULL;

    *ret_n = 0;
    for (size_t i = 0; i < c->n_points; i++) {
        if (strncmp(c->points[i].m.id, at, strlen(at)) == 0) {
            found = &c->points[i];
            (*ret_n)++;
        }
    }
    return *ret_n == 1 ? found : NULL;
}

const struct set_point *set_catalog_find(const struct set_catalog *c, const char *at,
                                         struct err *err)
{
    const struct set_point *p = at ? set_catalog_point(c, at) : NULL;
    size_t n = 0;
    int64_t ms;

    if (!c->n_points) {
        err_set(err, -ENOENT, "The set '%s' has no points", c->dir);
        return NULL;
    }
    if (!at)
        return &c->points[c->n_points - 1];
    if (p)
        return p;
    if (set_instant_of_person(at, &ms)) {
        p = find_by_time(c, ms);
        if (!p)
            err_set(err, -ENOENT, "The set '%s' has no point as early as '%s': its first is '%s'",
                    c->dir, at, c->points[0].m.id);
        return p;
    }
    p = find_by_beginning(c, at, &n);
    if (n > 1)
        err_set(err, -EINVAL, "%zu points of '%s' have ids that begin with '%s': say more of it",
                n, c->dir, at);
    else if (!p)
        err_set(err, -ENOENT, "The set '%s' has no point '%s': 'stillpoint list' shows them",
                c->dir, at);
    return p;
}

const struct set_image *set_catalog_last_of(const struct set_catalog *c, const char *disk)
{
    for (size_t i = c->n_points; i-- > 0;) {
        for (size_t k = 0; k < c->points[i].m.disks.n; k++) {
            if (strcmp(c->points[i].images[k].disk->name, disk) == 0)
                return &c->points[i].images[k];
        }
    }
    return NULL;
}

static const struct set_image *image_of(const struct set_point *points, size_t n,
                                        const char *file)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < points[i].m.disks.n; k++) {
            if (strcmp(points[i].images[k].disk->file, file) == 0)
                return &points[i].images[k];
        }
    }
    return NULL;
}

const struct set_image *set_catalog_image(const struct set_catalog *c, const char *file)
{
    const struct set_image *im = image_of(c->points, c->n_points, file);

    return im ? im : image_of(c->pending, c->n_pending, file);
}
