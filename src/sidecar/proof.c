/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether the bits of a sidecar file can be trusted: see proof.h.
 */
#include "sidecar/proof.h"
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

static void format_time(int64_t ns, char *buf, size_t size)
{
    time_t seconds = (time_t)(ns / (int64_t)NSEC_PER_SEC);
    struct tm tm;

    if (!gmtime_r(&seconds, &tm) || !strftime(buf, size, "%Y-%m-%d %H:%M:%S UTC", &tm))
        snprintf(buf, size, "an unknown time");
}

/* Always false. */
static bool changed_after(struct err *why, int64_t since_ns, const char *when)
{
    char since[64];

    format_time(since_ns, since, sizeof(since));
    return err_set(why, -EINVAL, "the image was changed by another program after %s, %s", since,
                   when);
}

static bool same_file(const struct sidecar_header *h, const struct storage_identity *was,
                      const struct storage_identity *is, bool same_boot, struct err *why)
{
    /* Device numbers of file systems are given out anew at each boot. */
    if (is->ino == was->ino && (!same_boot || is->dev == was->dev))
        return true;
    return err_set(why, -EINVAL, "the image is another file than the one that was written to "
                   "(%.200s): it was copied or replaced", h->image);
}

/* ---- closed in good order ----------------------------------------------------------- */

static bool clean_file(const struct sidecar_header *h, const struct storage_identity *was,
                       const struct storage_identity *is, bool same_boot, struct err *why)
{
    if (!same_file(h, was, is, same_boot, why))
        return false;
    if (is->size == was->size && is->mtime_ns == was->mtime_ns) {
        char since[64];

        format_time(h->written_ns, since, sizeof(since));
        return is->ctime_ns == was->ctime_ns ||
               err_set(why, -EINVAL, "the image's owner, mode, name or links were changed after "
                       "%s, when it was closed, so that nothing tells whether it was changed by "
                       "another program as well", since);
    }
    return changed_after(why, h->written_ns, "when it was closed");
}

static bool clean_device(const struct sidecar_header *h, const struct storage_identity *was,
                         const struct storage_identity *is, bool same_boot, struct err *why)
{
    if (!same_boot)
        return err_set(why, -EINVAL, "the machine was started anew after the device was closed, "
                       "and nothing tells whether another program has written to it since (with "
                       "--exclusive-devices you say that none does)");
    if (!was->diskseq || was->written == UINT64_MAX)
        return err_set(why, -EINVAL, "this device does not count what is written to it, so that "
                       "nothing tells whether another program did (with --exclusive-devices you "
                       "say that none does)");
    if (is->diskseq != was->diskseq || is->size != was->size)
        return err_set(why, -EINVAL, "the device is another one than that which was written to "
                       "(%.200s)", h->image);
    return is->written == was->written ||
           changed_after(why, h->written_ns, "when it was closed");
}

/* What a device counted speaks against anybody's word. */
static bool is_counted_change(const struct storage_identity *was,
                              const struct storage_identity *is, bool same_boot)
{
    return same_boot && was->diskseq && was->diskseq == is->diskseq && was->dev == is->dev &&
           was->written != UINT64_MAX && is->written != UINT64_MAX && was->written != is->written;
}

static bool clean(const struct sidecar_header *h, const struct sidecar_facts *f, unsigned i,
                  bool same_boot, struct err *why)
{
    const struct storage_identity *was = &h->storages[i], *is = &f->storages[i];

    switch (is->kind) {
    case STORAGE_FILE:
        return clean_file(h, was, is, same_boot, why);
    case STORAGE_DEVICE:
        return (f->exclusive && !is_counted_change(was, is, same_boot)) ||
               clean_device(h, was, is, same_boot, why);
    default:
        return f->exclusive ||
               err_set(why, -EINVAL, "nothing tells whether another program has written to %.200s "
                       "(with --exclusive-devices you say that none does)", h->image);
    }
}

/* ---- not closed ----------------------------------------------------------------------- */

/* A process that is gone wrote until about its last beat, and held the image's lock. */
static bool crashed_file(const struct sidecar_header *h, const struct sidecar_facts *f, unsigned i,
                         bool same_boot, struct err *why)
{
    const struct storage_identity *was = &h->storages[i], *is = &f->storages[i];
    int64_t newest = MAX(is->mtime_ns, is->ctime_ns);
    int64_t slack = same_boot ? SIDECAR_BEAT_SLACK_NS : SIDECAR_BEAT_CUT_SLACK_NS;

    if (!same_file(h, was, is, same_boot, why))
        return false;
    if (!f->has_beat)
        return err_set(why, -EINVAL, "the file with its bitmaps is damaged: it does not tell when "
                       "the image was last written to");
    if (f->now_ns < f->beat.time_ns - slack)
        return err_set(why, -EINVAL, "the clock was set back since the image was last written to, "
                       "so that its times do not tell whether another program has written to it");
    if (newest > f->beat.time_ns + slack)
        return changed_after(why, f->beat.time_ns, same_boot
                             ? "when the process that wrote to it had ended without closing it"
                             : "after which the machine went down without closing it");
    if (!same_boot && newest > f->boot_time_ns)
        return changed_after(why, f->boot_time_ns, "when the machine was started again");
    return true;
}

static bool crashed(const struct sidecar_header *h, const struct sidecar_facts *f, unsigned i,
                    bool same_boot, struct err *why)
{
    if (f->storages[i].kind == STORAGE_FILE)
        return crashed_file(h, f, i, same_boot, why);
    return f->exclusive ||
           err_set(why, -EINVAL, "%.200s was not closed in good order, and nothing tells whether "
                   "another program has written to it since (with --exclusive-devices you say "
                   "that none does)", h->image);
}

enum sidecar_verdict sidecar_judge(const struct sidecar_header *h, const struct sidecar_facts *f,
                                   struct err *why)
{
    bool same_boot = memcmp(h->boot_id, f->boot_id, 16) == 0;

    if (h->state == SIDECAR_SPOILED) {
        err_set(why, -EINVAL, "%s", h->reason);
        return SIDECAR_USELESS;
    }
    if (h->n_storages != f->n_storages) {
        err_set(why, -EINVAL, "the image consists of other files than it did");
        return SIDECAR_USELESS;
    }
    for (unsigned i = 0; i < h->n_storages; i++) {
        bool same_kind = h->storages[i].kind == f->storages[i].kind;

        if (!same_kind) {
            err_set(why, -EINVAL, "the image lies on another kind of storage than it did");
            return SIDECAR_USELESS;
        }
        if (!(h->state == SIDECAR_CLEAN ? clean : crashed)(h, f, i, same_boot, why))
            return SIDECAR_USELESS;
    }
    if (h->disk_size != f->disk_size) {
        err_set(why, -EINVAL, "the disk has %" PRIu64 " bytes, and had %" PRIu64, f->disk_size,
                h->disk_size);
        return SIDECAR_USELESS;
    }
    return h->state == SIDECAR_OPEN && !same_boot ? SIDECAR_REGIONS : SIDECAR_EXACT;
}
