/* SPDX-License-Identifier: Apache-2.0
 *
 * Where sidecar files are: see place.h.
 */
#include "sidecar/place.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "loop/co_io.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* Process-wide, as the command line is; constant while there are nodes. */
static struct {
    char *state_dir;             /* absolute; NULL: next to the images */
    bool exclusive;
    bool fake;
    uint8_t boot_id[16];         /* the fake one */
} settings;

bool sidecar_set_state_dir(const char *dir, struct err *err)
{
    char *path = realpath(dir, NULL);

    if (!path)
        return err_errno(err, -errno, "%s", dir);
    free(settings.state_dir);
    settings.state_dir = path;
    return access(path, W_OK | X_OK) == 0 || err_errno(err, -errno, "%s", dir);
}

void sidecar_set_exclusive(void)
{
    settings.exclusive = true;
}

bool sidecar_exclusive(void)
{
    return settings.exclusive;
}

/* ---- the machine -------------------------------------------------------------------- */

void sidecar_fake_boot(const uint8_t *boot_id)
{
    settings.fake = boot_id != NULL;
    if (boot_id)
        memcpy(settings.boot_id, boot_id, sizeof(settings.boot_id));
}

/* "1d4c8f6e-....": 32 hexadecimal digits. A machine that does not tell is never the same
 * twice: the time it gives differs. */
void sidecar_boot_id(uint8_t ret[16])
{
    char text[64] = "";
    unsigned digits = 0;
    FILE *f;

    if (settings.fake) {
        memcpy(ret, settings.boot_id, 16);
        return;
    }
    memset(ret, 0, 16);
    f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f && fgets(text, sizeof(text), f)) {
        for (const char *p = text; *p && digits < 32; p++) {
            const char *hex = "0123456789abcdef", *at = strchr(hex, *p);

            if (!at)
                continue;
            ret[digits / 2] |= (uint8_t)((at - hex) << (digits % 2 ? 0 : 4));
            digits++;
        }
    }
    if (f)
        fclose(f);
    if (digits < 32) {
        int64_t now = sidecar_now_ns();

        memcpy(ret, &now, sizeof(now));
    }
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return ts.tv_sec * (int64_t)NSEC_PER_SEC + ts.tv_nsec;
}

int64_t sidecar_now_ns(void)
{
    return clock_ns(CLOCK_REALTIME_COARSE);
}

int64_t sidecar_boot_time_ns(void)
{
    int64_t now_ns = clock_ns(CLOCK_REALTIME);

    return settings.fake ? now_ns : now_ns - clock_ns(CLOCK_BOOTTIME);
}

/* ---- names --------------------------------------------------------------------------- */

static struct node *protocol_of(struct node *n)
{
    while (n && !n->drv->is_protocol)
        n = edge_node(n->file);
    return n;
}

/* FNV-1a: to tell names apart, nothing more; who meets a namesake is told by the file. */
static uint64_t hash(const char *text)
{
    uint64_t h = 0xcbf29ce484222325ULL;

    for (; *text; text++)
        h = (h ^ (uint8_t)*text) * 0x100000001b3ULL;
    return h;
}

struct naming {
    const char *filename;
    bool device;
    char *image;                 /* absolute */
};

/* A device is known by the name that it was given: what /dev/disk/by-id/... points to
 * changes from boot to boot. */
static int resolve(void *arg)
{
    struct naming *j = arg;
    CLEANUP(free) char *cwd = NULL;

    if (!j->device) {
        j->image = realpath(j->filename, NULL);
        return j->image ? 0 : -errno;
    }
    cwd = j->filename[0] == '/' ? xstrdup("") : getcwd(NULL, 0);
    if (!cwd)
        return -errno;
    j->image = xasprintf("%s%s%s", cwd, *cwd ? "/" : "", j->filename);
    return 0;
}

/* In the state directory: the image's last name, for people, and a number for its path. */
static char *path_in_state_dir(const char *image)
{
    const char *slash = strrchr(image, '/'), *base = slash ? slash + 1 : image;

    return xasprintf("%s/%.100s.%016" PRIx64 ".bitmaps", settings.state_dir, base, hash(image));
}

/* What the node makes of the image: its driver, and those between the two but for filters. */
static void name_kind(struct node *n, char *buf)
{
    CLEANUP_STRBUF struct strbuf text = { 0 };

    for (struct node *m = n; m && (m == n || !m->drv->is_protocol); m = edge_node(m->file)) {
        if (m != n && m->drv->is_filter)
            continue;

        json_int_t at = json_integer_value(json_object_get(node_options(m), "offset"));

        strbuf_addf(&text, "%s%s", m == n ? "" : " over ", m->drv->name);
        if (at)
            strbuf_addf(&text, " at %" JSON_INTEGER_FORMAT, at);
    }
    snprintf(buf, SIDECAR_KIND_MAX, "%s", strbuf_text(&text));
}

/* An internal snapshot, for one: the bitmaps are of the disk as it is now. */
static bool is_of_the_past(const struct node *n)
{
    while (n && !n->of_the_past)
        n = edge_node(n->file);
    return n != NULL;
}

bool co_sidecar_place(struct node *n, struct sidecar_place *ret, struct err *err)
{
    struct node *protocol = protocol_of(n);
    CLEANUP(free) struct node_info *info = xnew(struct node_info);
    struct storage_identity id = { .kind = STORAGE_UNKNOWN };
    struct naming j = { .filename = info->filename };

    *ret = (struct sidecar_place){ 0 };
    if (is_of_the_past(n))
        return err_set(err, -ENOTSUP, "Node '%s' is not the disk as it is now, so that it has none "
                       "of its bitmaps", n->name);
    if (!protocol || !protocol->storage_id)
        return err_set(err, -ENOTSUP, "Node '%s' has no storage that outlives this process, so "
                       "that its bitmaps cannot be kept", n->name);
    node_get_info(protocol, info);
    if (protocol->drv->co_identify)
        protocol->drv->co_identify(protocol, &id);
    if (id.kind == STORAGE_UNKNOWN) {
        j.image = xstrdup(protocol->storage_id);
    } else {
        j.device = id.kind == STORAGE_DEVICE;

        int r = co_offload(resolve, &j);

        if (r < 0)
            return err_errno(err, r, "Cannot find '%s' for its bitmaps", info->filename);
    }
    name_kind(n, ret->kind);
    snprintf(ret->image, sizeof(ret->image), "%s", j.image);
    if (settings.state_dir)
        ret->path = path_in_state_dir(j.image);
    else if (id.kind == STORAGE_FILE)
        ret->path = xasprintf("%s.bitmaps", j.image);
    free(j.image);
    return ret->path ||
           err_set(err, -EINVAL, "There is no place next to '%.500s' for its bitmaps: give a "
                   "directory for them with --state-dir", ret->image);
}

void sidecar_place_done(struct sidecar_place *p)
{
    free(MOVE(p->path));
}
