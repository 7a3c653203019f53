/* SPDX-License-Identifier: Apache-2.0
 *
 * Who gets a keeper: a node for which there is a sidecar file, when it is opened; one
 * that is to keep its first persistent bitmap. What is found is judged (proof.h) before
 * anything is believed.
 *
 * A node that is read-only gets the bitmaps and no keeper: the file stays as it is.
 */
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "sidecar/impl.h"
#include "sidecar/proof.h"
#include <inttypes.h>

/* Longer than a write may seem to be the last process's: SIDECAR_BEAT_SLACK_NS. */
#define LOCK_WAIT_NS (2 * NSEC_PER_SEC)
#define LOCK_RETRY_NS (5 * NSEC_PER_MSEC)

/* ---- what is found ------------------------------------------------------------------- */

static enum sidecar_verdict co_judge(struct node *n, const struct sidecar_loaded *l,
                                     struct err *why)
{
    struct node_storage storages[NODE_STORAGES_MAX];
    CLEANUP(free) struct sidecar_facts *f = xnew(struct sidecar_facts);

    f->exclusive = sidecar_exclusive();
    f->disk_size = n->size;
    f->boot_time_ns = sidecar_boot_time_ns();
    f->now_ns = sidecar_now_ns();
    sidecar_boot_id(f->boot_id);
    f->n_storages = co_node_storages(n, storages);
    for (unsigned i = 0; i < f->n_storages; i++)
        f->storages[i] = n->read_only ? storages[i].now : storages[i].found;
    f->has_beat = l->has_beat;
    f->beat = l->beat;
    return sidecar_judge(&l->h, f, why);
}

/* I-S7: what was written to a region in the log may be dirty without a bit on the disk. */
static uint64_t add_regions(struct bitmap *bits, unsigned shift, const struct sidecar_loaded *l)
{
    uint64_t before = bitmap_count(bits), all = bitmap_size(l->marked), first, count;

    for (uint64_t at = 0; bitmap_next_range(l->marked, at, all, &first, &count);
         at = first + count) {
        uint64_t from = first * l->h.region_size;
        uint64_t to = MIN((first + count) * l->h.region_size, l->h.disk_size);

        if (from < to)
            bitmap_set(bits, from >> shift, ((to - 1) >> shift) - (from >> shift) + 1);
    }
    return (bitmap_count(bits) - before) << shift;
}

/* Give the node the bitmap of entry @i, if it has not got it from the image. Its bits
 * in the file are left in *ret_in_file. NULL: it could not. */
static struct dirty_bitmap *bring_back(struct node *n, struct sidecar_loaded *l, uint32_t i,
                                       enum sidecar_verdict verdict, const char *useless)
{
    const struct sidecar_entry *e = &l->entries[i];
    const char *why = verdict == SIDECAR_USELESS ? useless : l->why[i];
    struct dirty_bitmap *bm = dirty_bitmap_find(n, e->name, NULL);
    CLEANUP(bitmap_free) struct bitmap *bits = NULL;
    unsigned shift = (unsigned)__builtin_ctz(e->granularity);
    struct err err = ERR_INIT;
    uint64_t more = 0;

    /* What the image says and vouches for is newer, or the same. */
    if (bm && (!dirty_bitmap_inconsistent(bm) ||
               dirty_bitmap_granularity(bm) != e->granularity))
        return bm;
    if (!*why) {
        bits = bitmap_new(e->nbits);
        if (bits)
            bitmap_merge(bits, l->bits[i]);
        else
            why = "there was no memory for it";
    }
    if (bits && verdict == SIDECAR_REGIONS)
        more = add_regions(bits, shift, l);
    if (!bm) {
        struct dirty_bitmap_opts o = {
            .name = e->name, .granularity = e->granularity, .disabled = !e->enabled,
            .persistent = true,
        };

        bm = dirty_bitmap_add(n, &o, &err);
        if (!bm) {
            log_warn("node '%s': dirty bitmap '%s' is lost: %s", n->name, e->name, err.text);
            return NULL;
        }
        dirty_bitmap_spoil(bm, "%s", *why ? why : "it is being read");
    }
    if (*why) {
        /* The image only knows that it was not closed. */
        bits = bitmap_new(div_round_up(n->size, e->granularity));
        if (bits)
            dirty_bitmap_mend(bm, MOVE(bits));
        dirty_bitmap_spoil(bm, "%s", why);
    } else {
        dirty_bitmap_mend(bm, MOVE(bits));
    }
    if (*why)
        log_warn("node '%s': dirty bitmap '%s' is inconsistent: %s", n->name, e->name, why);
    dirty_bitmap_set_over_reported(bm, more);
    if (more)
        log_info("node '%s': after a power cut %" PRIu64 " bytes more count as dirty in bitmap "
                 "'%s' than are known to be", n->name, more, e->name);
    return bm;
}

/* ---- a keeper ------------------------------------------------------------------------- */

static struct sidecar *co_adopt(struct node *n, struct sidecar_place *place,
                                struct sidecar_file *f)
{
    struct sidecar *s = sidecar_new(n);

    s->place = *place;
    place->path = NULL;
    s->f = *f;
    f->fd = -1;
    f->path = NULL;
    return s;
}

/* From now on the file is that of a disk which is written to. Bits that come from the log
 * are on the disk before the header is of this boot (I-S7). @useless: nothing is believed of
 * what was found (NULL: all is), and the file says so before it has a beat that is as
 * young as what others wrote. */
static void co_begin(struct sidecar *s, const char *useless)
{
    struct kept *k;
    int r = 0;

    node_set_dirty_keeper(s->node, &s->k);
    co_mutex_lock(&s->lock);
    if (useless)
        r = co_sidecar_condemn(s, useless);
    list_for_each(k, &s->kept, link) {
        if (r == 0 && k->has_area)
            r = co_sidecar_tidy(s, k);
    }
    if (r == 0)
        r = co_sidecar_sync(&s->f);
    if (r == 0)
        r = co_sidecar_store(s, SIDECAR_OPEN);
    if (r < 0)
        co_sidecar_fail(s, r, "it could not be written");
    co_mutex_unlock(&s->lock);
    sidecar_kick(s);
}

static void co_keep_on(struct node *n, struct sidecar_place *place, struct sidecar_file *f,
                       struct sidecar_loaded *l, enum sidecar_verdict verdict, const char *useless)
{
    struct sidecar *s = co_adopt(n, place, f);
    bool same_size = l->h.disk_size == n->size;

    s->h = l->h;
    s->has_header = true;
    memcpy(s->last, l->header_bytes, sizeof(s->last));
    if (!sidecar_set_regions(s, l->h.disk_size)) {
        sidecar_free(s);
        return;
    }
    bitmap_merge(s->marked, l->marked);
    bitmap_merge(s->fresh, l->marked);
    for (uint32_t i = 0; i < l->h.n_bitmaps; i++) {
        struct dirty_bitmap *bm = bring_back(n, l, i, verdict, useless);
        struct kept *k = bm ? sidecar_add_kept(s, bm) : NULL;

        if (!k || k->nbits != l->entries[i].nbits || !same_size) {
            if (k)
                k->bm = NULL;
            continue;
        }
        k->area = l->entries[i].area;
        k->has_area = true;
        if (l->bits[i]) {
            bitmap_free(k->bits);
            k->bits = MOVE(l->bits[i]);
        }
    }
    co_begin(s, verdict == SIDECAR_USELESS ? useless : NULL);
}

/* Whether the file is one that this node can keep on with. */
static bool co_open_found(struct node *n, const struct sidecar_place *p, struct sidecar_file *f,
                          struct sidecar_loaded *ret, struct err *err)
{
    int r = co_sidecar_file_open(f, p->path, n->read_only, err);

    if (r < 0)
        return r == -ENOENT ? err_set(err, r, "there is none") : false;
    if (!co_sidecar_load(f, ret, err)) {
        err_prefix(err, "'%s' cannot be used: ", p->path);
        co_sidecar_file_close(f);
        return false;
    }
    if (strcmp(ret->h.kind, p->kind) == 0)
        return true;
    err_set(err, -EBUSY, "'%s' has the bitmaps of this image's node of driver '%s'", p->path,
            ret->h.kind);
    sidecar_loaded_done(ret);
    co_sidecar_file_close(f);
    return false;
}

/* The same, for a node that was just opened and has its image's lock. Where the last process
 * was killed the kernel may still have to finish something for it, and keep its locks:
 * without the file the bitmaps would miss what is written from now on, and so soon
 * after the last beat nothing would tell. */
static bool co_wait_for_found(struct node *n, const struct sidecar_place *p,
                              struct sidecar_file *f, struct sidecar_loaded *ret, struct err *err)
{
    uint64_t deadline = loop_now() + LOCK_WAIT_NS;

    while (!co_open_found(n, p, f, ret, err)) {
        /* A filter stands on a node here that may have the file, and gives no way around it. */
        if (err->code != -EAGAIN || n->read_only || n->drv->is_filter || loop_now() >= deadline)
            return false;
        co_sleep(LOCK_RETRY_NS);
    }
    return true;
}

static bool has_persistent(struct node *n)
{
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        if (dirty_bitmap_persistent(bm))
            return true;
    }
    return false;
}

static bool co_create(struct node *n, struct sidecar_place *p, struct err *err)
{
    struct sidecar_file f;
    struct sidecar *s;
    int r;

    if (co_sidecar_file_create(&f, p->path, err) < 0)
        return false;
    s = co_adopt(n, p, &f);
    sidecar_boot_id(s->h.boot_id);
    r = sidecar_set_regions(s, n->size) ? 0 : -ENOMEM;
    if (r == 0)
        r = co_sidecar_resize(&s->f, SIDECAR_AREAS_AT);
    if (r == 0)
        r = co_sidecar_store(s, SIDECAR_OPEN);
    if (r == 0)
        r = co_sidecar_write_log(s);
    if (r == 0)
        r = co_sidecar_sync(&s->f);
    if (r < 0)
        err_errno(err, r, "Could not write '%s'", s->f.path);
    if (r < 0 || co_sidecar_file_publish(&s->f, err) < 0) {
        co_sidecar_file_discard(&s->f);
        sidecar_free(s);
        return false;
    }
    node_set_dirty_keeper(n, &s->k);
    sidecar_kick(s);
    return true;
}

/* ---- what block/ calls -------------------------------------------------------------------- */

static bool co_keep(struct node *n, struct err *err)
{
    struct sidecar_place p;
    struct sidecar_file f;
    struct sidecar_loaded l;
    struct node_storage storages[NODE_STORAGES_MAX];
    struct err why = ERR_INIT;
    unsigned count;
    bool ok;

    if (n->read_only)
        return err_set(err, -EROFS, "Node '%s' is read-only: its bitmaps cannot be kept", n->name);
    count = co_node_storages(n, storages);
    for (unsigned i = 0; i < count; i++) {
        if (storages[i].now.kind == STORAGE_UNKNOWN && !sidecar_exclusive())
            return err_set(err, -ENOTSUP, "Bitmaps of node '%s' cannot be kept: nothing would tell "
                           "whether another program has written to its storage. If none does, say "
                           "so with --exclusive-devices", n->name);
    }
    if (!co_sidecar_place(n, &p, err))
        return false;
    ok = !co_open_found(n, &p, &f, &l, &why);
    if (!ok) {
        err_set(err, -EEXIST, "'%s' is there already: open the disk again to use its bitmaps",
                p.path);
        sidecar_loaded_done(&l);
        co_sidecar_file_close(&f);
    } else if (why.code == -EAGAIN) {
        ok = err_set(err, why.code, "%s", why.text);
    } else if (why.code != -ENOENT) {
        ok = err_set(err, why.code, "%s; remove that file to give its bitmaps up", why.text);
    }
    ok = ok && co_create(n, &p, err);
    sidecar_place_done(&p);
    return ok;
}

/* Nothing but our own record tells of what is written to such storage: a crash later, and the
 * file that could not be used now would be believed without it. */
static bool co_needs_its_file(struct node *n)
{
    struct node_storage storages[NODE_STORAGES_MAX];
    unsigned count = co_node_storages(n, storages);
    bool times = true;

    for (unsigned i = 0; i < count; i++)
        times &= storages[i].now.kind == STORAGE_FILE;
    return !times && sidecar_exclusive() && !n->read_only;
}

static bool co_opened(struct node *n, struct err *ret_err)
{
    bool ok = true;
    struct sidecar_place p;
    struct sidecar_file f;
    struct sidecar_loaded l;
    struct err err = ERR_INIT;

    if (n->force_share || !co_sidecar_place(n, &p, NULL))
        return true;
    if (co_wait_for_found(n, &p, &f, &l, &err)) {
        enum sidecar_verdict verdict = co_judge(n, &l, &err);

        if (n->read_only) {
            for (uint32_t i = 0; i < l.h.n_bitmaps; i++)
                (void)bring_back(n, &l, i, verdict, err.text);
        } else {
            co_keep_on(n, &p, &f, &l, verdict, err.text);
        }
        sidecar_loaded_done(&l);
        co_sidecar_file_close(&f);
    } else if (err.code != -ENOENT && err.code != -EBUSY && !n->drv->is_protocol &&
               co_needs_its_file(n)) {
        ok = err_set(ret_err, err.code, "%s; with --exclusive-devices the disk is not written to "
                     "without that file: remove it to give its bitmaps up", err.text);
    } else if (err.code != -ENOENT && err.code != -EBUSY && !n->drv->is_protocol) {
        log_warn("node '%s' has no dirty bitmaps: %s", n->name, err.text);
    } else if (!n->read_only && has_persistent(n) && !co_create(n, &p, &err)) {
        log_warn("the dirty bitmaps of node '%s' would not survive a crash: %s", n->name,
                 err.text);
    }
    sidecar_place_done(&p);
    return ok;
}

void sidecar_register(void)
{
    static const struct dirty_keeping keeping = { .co_opened = co_opened, .co_keep = co_keep };

    dirty_set_keeping(&keeping);
}
