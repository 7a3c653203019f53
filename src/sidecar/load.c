/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading a sidecar file whole, in a worker. Only what is not a hole is read, and the disk
 * says how many bits there can be, so that a damaged file costs no more than it has bytes.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "loop/co_io.h"
#include "sidecar/impl.h"
#include <stdio.h>
#include <unistd.h>

struct job {
    struct sidecar_file *f;
    struct sidecar_loaded *l;
    struct err *err;
};

/* What lies behind the end is zeros. */
static bool read_at(struct job *j, uint64_t off, void *buf, size_t len)
{
    size_t done = 0;
    ssize_t r;

    while (done < len) {
        r = pread(j->f->fd, (char *)buf + done, len - done, (off_t)(off + done));
        if (r < 0)
            return err_errno(j->err, -errno, "it could not be read");
        if (r == 0)
            break;
        done += (size_t)r;
    }
    memset((char *)buf + done, 0, len - done);
    return true;
}

static bool read_header(struct job *j)
{
    struct sidecar_header h[2];
    uint8_t buf[2][SIDECAR_BLOCK];
    struct err why[2];
    bool good[2];

    for (unsigned i = 0; i < 2; i++) {
        if (!read_at(j, i * SIDECAR_BLOCK, buf[i], SIDECAR_BLOCK))
            return false;
        good[i] = sidecar_header_decode(buf[i], &h[i], &why[i]) && (h[i].seq & 1) == i;
    }
    if (!good[0] && !good[1])
        return err_set(j->err, -EINVAL, "%s", why[1].code ? why[1].text : why[0].text);

    unsigned best = good[1] && (!good[0] || h[1].seq > h[0].seq);

    j->l->h = h[best];
    memcpy(j->l->header_bytes, buf[best], SIDECAR_BLOCK);
    return true;
}

static bool read_directory(struct job *j)
{
    const struct sidecar_header *h = &j->l->h;
    CLEANUP(free) uint8_t *buf = xmalloc(h->dir_bytes + 1);

    return read_at(j, SIDECAR_DIR_AT + h->dir_slot * SIDECAR_DIR_BYTES, buf, h->dir_bytes) &&
           sidecar_dir_decode(h, buf, &j->l->entries, j->err);
}

static bool read_log(struct job *j)
{
    const struct sidecar_header *h = &j->l->h;
    uint8_t buf[SIDECAR_SECTOR];

    j->l->marked = bitmap_new(MAX(div_round_up(h->disk_size, h->region_size), (uint64_t)1));
    if (!j->l->marked)
        return err_set(j->err, -ENOMEM, "there is no memory for its log");
    for (unsigned i = 0; i < SIDECAR_LOG_SECTORS; i++) {
        if (!read_at(j, SIDECAR_LOG_AT + i * SIDECAR_SECTOR, buf, sizeof(buf)))
            return false;
        sidecar_log_decode(buf, i, j->l->marked);
    }
    if (!read_at(j, SIDECAR_BEAT_AT, buf, sizeof(buf)))
        return false;
    j->l->has_beat = sidecar_beat_decode(buf, &j->l->beat);
    return true;
}

static bool read_bits(struct job *j, const struct sidecar_entry *e, struct bitmap *bits)
{
    uint64_t end = e->area + sidecar_area_bytes(e->nbits);
    uint8_t buf[SIDECAR_BLOCK];

    for (uint64_t at = e->area; at < end; at += SIDECAR_BLOCK) {
        off_t data = lseek(j->f->fd, (off_t)at, SEEK_DATA);

        if (data < 0 && errno == ENXIO)
            break;
        if (data >= 0)
            at = align_down((uint64_t)data, SIDECAR_BLOCK);
        if (at >= end)
            break;
        if (!read_at(j, at, buf, sizeof(buf)))
            return false;
        sidecar_block_decode(buf, bits, (at - e->area) / SIDECAR_BLOCK);
    }
    return true;
}

/* What is wrong with one bitmap leaves the others alone. */
static bool read_bitmap(struct job *j, uint32_t i)
{
    const struct sidecar_entry *e = &j->l->entries[i];
    CLEANUP(bitmap_free) struct bitmap *bits = NULL;
    char *why = j->l->why[i];

    snprintf(why, SIDECAR_REASON_MAX, "%s", e->reason);
    if (*why)
        return true;
    if (e->area + sidecar_area_bytes(e->nbits) > j->f->size) {
        snprintf(why, SIDECAR_REASON_MAX, "the file with its bits was cut short");
        return true;
    }
    bits = bitmap_new(e->nbits);
    if (!bits) {
        snprintf(why, SIDECAR_REASON_MAX, "there was no memory for it");
        return true;
    }
    if (!read_bits(j, e, bits))
        return false;
    if (j->l->h.state == SIDECAR_CLEAN && sidecar_bits_crc(bits) != e->crc) {
        snprintf(why, SIDECAR_REASON_MAX, "the file with its bits is damaged");
        return true;
    }
    j->l->bits[i] = MOVE(bits);
    return true;
}

static int load(void *arg)
{
    struct job *j = arg;
    struct sidecar_loaded *l = j->l;

    if (!read_header(j) || !read_directory(j) || !read_log(j))
        return -1;
    l->bits = xcalloc(l->h.n_bitmaps + 1, sizeof(*l->bits));
    l->why = xcalloc(l->h.n_bitmaps + 1, sizeof(*l->why));
    for (uint32_t i = 0; i < l->h.n_bitmaps; i++) {
        if (!read_bitmap(j, i))
            return -1;
    }
    return 0;
}

bool co_sidecar_load(struct sidecar_file *f, struct sidecar_loaded *ret, struct err *err)
{
    struct job j = { f, ret, err };

    *ret = (struct sidecar_loaded){ 0 };
    if (co_offload(load, &j) == 0)
        return true;
    sidecar_loaded_done(ret);
    return false;
}

void sidecar_loaded_done(struct sidecar_loaded *l)
{
    for (uint32_t i = 0; l->bits && i < l->h.n_bitmaps; i++)
        bitmap_free(l->bits[i]);
    free(MOVE(l->bits));
    free(MOVE(l->why));
    free(MOVE(l->entries));
    bitmap_free(MOVE(l->marked));
}
