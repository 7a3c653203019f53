/* SPDX-License-Identifier: Apache-2.0
 *
 * The guest of the model: writers that never have the same byte in hand at once.
 */
#include "model_shadow.h"
#include "base/mem.h"
#include "base/range.h"
#include "drivers/fault.h"
#include <stdio.h>

/* ---- writers -------------------------------------------------------------------------- */

void model_fill(struct model *m, uint8_t *buf, uint64_t len)
{
    uint64_t kind = model_random(m, 6);

    if (kind == 0) {
        memset(buf, 0, len);
    } else if (kind < 3) {
        memset(buf, model_random(m, 256), len);
    } else {
        uint64_t word = model_random(m, UINT64_MAX);

        for (uint64_t i = 0; i < len; i += sizeof(word), word += 0x9e3779b97f4a7c15ULL)
            memcpy(buf + i, &word, MIN(sizeof(word), len - i));
    }
}

static bool claimed(struct model *m, uint64_t off, uint64_t len)
{
    struct claim *c;

    list_for_each(c, &m->writing, link) {
        if (ranges_overlap(c->off, c->len, off, len))
            return true;
    }
    return false;
}

static void pick_range(struct model *m, struct claim *c)
{
    static const uint64_t most[] = { 512, 4 * KiB, 4 * KiB, 16 * KiB, 64 * KiB, 512 * KiB };
    uint64_t longest = most[model_random(m, ARRAY_SIZE(most))];

    c->off = model_random(m, m->size);
    c->len = 1 + model_random(m, longest);
    if (!one_in(m, 3)) {
        c->off = align_down(c->off, 4 * KiB);
        c->len = align_up(c->len, 4 * KiB);
    }
    c->len = MIN(c->len, m->size - c->off);
}

static void timed(struct model *m, uint64_t start)
{
    m->longest_ns = MAX(m->longest_ns, loop_now() - start);
}

static void co_write(struct model *m, struct claim *c, uint8_t *buf)
{
    struct iovec iov[2] = { { buf, c->len / 2 }, { buf + c->len / 2, c->len - c->len / 2 } };
    bool zeroes = one_in(m, 8);
    uint64_t start = loop_now();
    int r;

    if (zeroes) {
        memset(buf, 0, c->len);
        claim_shows(m, c, buf);
        r = co_disk_write_zeroes(m->guest, c->off, c->len, one_in(m, 2) ? REQ_MAY_UNMAP : 0);
    } else {
        model_fill(m, buf, c->len);
        claim_shows(m, c, buf);
        r = co_disk_pwritev(m->guest, c->off, c->len, iov, 2, one_in(m, 20) ? REQ_FUA : 0);
    }
    timed(m, start);
    c->new = NULL;
    memset(m->now.known + c->off, r == 0, c->len);
    if (r == 0)
        memcpy(m->now.bytes + c->off, buf, c->len);
    else if (!fault_applied(m->source_fault))
        model_fail(m, "a guest's write failed: %s", strerror(-r));
}

/* What a discarded range reads as is the driver's choice; afterwards it stays. */
static void co_discard(struct model *m, struct claim *c, uint8_t *buf)
{
    struct iovec iov = { buf, c->len };
    uint64_t start = loop_now();

    claim_shows(m, c, NULL);
    memset(m->now.known + c->off, 0, c->len);
    if (co_disk_discard(m->guest, c->off, c->len) < 0)
        return;
    timed(m, start);
    if (co_disk_preadv(m->guest, c->off, c->len, &iov, 1, 0) < 0)
        return;
    memcpy(m->now.bytes + c->off, buf, c->len);
    memset(m->now.known + c->off, 1, c->len);
}

static void co_read_back(struct model *m, const struct claim *c, uint8_t *buf)
{
    struct iovec iov = { buf, c->len };

    if (co_disk_preadv(m->guest, c->off, c->len, &iov, 1, 0) < 0)
        return;
    for (uint64_t i = 0; i < c->len; i++) {
        if (m->now.known[c->off + i] && buf[i] != m->now.bytes[c->off + i])
            model_fail(m, "the guest reads %02x at byte %ju instead of %02x", buf[i],
                       (uintmax_t)(c->off + i), m->now.bytes[c->off + i]);
    }
}

static void co_writer(void *arg)
{
    struct model *m = arg;
    CLEANUP(free) uint8_t *buf = xmalloc(512 * KiB);
    uint64_t pause_us = model_random(m, 800);

    while (!m->stop) {
        struct claim c = { .new = NULL };

        if (m->holds) {
            m->held++;
            waitq_wake_all(&m->still);
            co_waitq_wait(&m->go);
            m->held--;
            continue;
        }
        pick_range(m, &c);
        if (claimed(m, c.off, c.len)) {
            co_yield();
            continue;
        }
        list_push_tail(&m->writing, &c.link);
        if (one_in(m, 12))
            co_discard(m, &c, buf);
        else if (one_in(m, 12))
            co_read_back(m, &c, buf);
        else
            co_write(m, &c, buf);
        list_del(&c.link);
        if (pause_us && one_in(m, 3))
            co_sleep(model_random(m, pause_us) * NSEC_PER_USEC);
    }
    m->writers--;
    waitq_wake_all(&m->still);
}

void guest_start_writers(struct model *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        m->writers++;
        co_start(co_writer, m);
    }
}

void co_guest_hold(struct model *m)
{
    m->holds++;
    while (m->held < m->writers)
        co_waitq_wait(&m->still);
}

void guest_go(struct model *m)
{
    if (--m->holds == 0)
        waitq_wake_all(&m->go);
}

/* ---- the disk ------------------------------------------------------------------------------ */

uint8_t *co_guest_read(struct model *m)
{
    uint8_t *buf = xmalloc(m->size);
    struct iovec iov = { buf, m->size };
    int r, tries = 0;

    /* A fault that is still to come strikes once. */
    do {
        r = co_disk_preadv(m->guest, 0, m->size, &iov, 1, 0);
    } while (r < 0 && fault_applied(m->source_fault) && ++tries < 10);
    if (r < 0)
        model_fail(m, "the guest cannot read: %s", strerror(-r));
    return buf;
}

/* Some stretches of data; nothing in between. */
static void co_scatter(struct model *m, struct node *n)
{
    CLEANUP(free) uint8_t *buf = xmalloc(256 * KiB);
    unsigned pieces = 1 + model_random(m, 12);

    while (pieces--) {
        uint64_t off = model_random(m, m->size);
        uint64_t len = MIN(1 + model_random(m, 256 * KiB), m->size - off);

        model_fill(m, buf, len);
        int r = co_node_pwrite(n, off, len, buf, 0);

        if (r < 0)
            model_fail(m, "cannot fill the disk: %s", strerror(-r));
    }
}

void co_guest_begin(struct model *m, struct image *source, struct image *backing)
{
    static const uint32_t clusters[] = { 512, 4 * KiB, 64 * KiB, 64 * KiB, 256 * KiB };
    struct err err = ERR_INIT;
    struct image_opts o = { .cluster_size = clusters[model_random(m, ARRAY_SIZE(clusters))] };

    m->size = 64 * KiB + 512 * model_random(m, 6 * KiB);
    if (one_in(m, 4))
        m->size += model_random(m, 512);         /* raw only: qcow2 is in sectors */
    o.format = m->size % 512 || one_in(m, 2) ? MODEL_RAW : MODEL_QCOW2;
    m->format = o.format;
    if (o.format == MODEL_QCOW2 && !one_in(m, 3)) {
        struct image_opts below = {
            .format = one_in(m, 2) ? MODEL_RAW : MODEL_QCOW2,
            .cluster_size = clusters[model_random(m, ARRAY_SIZE(clusters))],
        };

        co_image_create(m, backing, &below);
        co_image_open(m, backing, false, false);
        co_scatter(m, backing->node);
        co_image_close(backing);
        snprintf(m->backing, sizeof(m->backing), "%s", backing->path);
        snprintf(m->backing_format, sizeof(m->backing_format), "%s",
                 below.format == MODEL_RAW ? "raw" : "qcow2");
        o.backing = m->backing;
        o.backing_format = m->backing_format;
    }
    co_image_create(m, source, &o);
    co_image_open(m, source, true, false);
    co_scatter(m, source->node);
    memcpy(m->path, source->path, sizeof(m->path));
    m->source = source->node;
    m->source_fault = source->fault;
    m->guest = disk_open(m->source, "guest", EDGE_READ | EDGE_WRITE, EDGE_READ | EDGE_WRITE,
                         &err);
    if (!m->guest)
        model_fail(m, "%s", err.text);
    m->now.bytes = co_guest_read(m);
    m->now.known = xmalloc(m->size);
    memset(m->now.known, 1, m->size);
}
