/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's turns with an image that stores bitmaps (kept_bitmaps.h). It changes them, writes to
 * the disk, and stores them when it closes the image: by qemu-img and qemu-io, or in one
 * qemu-storage-daemon that is told by QMP and written to over NBD.
 */
#include "kept_bitmaps.h"
#include <stdio.h>

struct talk {
    struct kept *k;
    struct model *m;
    bool qmp;
    FILE *script;                /* of the shell */
    unsigned said;
};

static uint64_t below(struct talk *t, uint64_t n)
{
    return test_random(&t->m->seed, n);
}

/* One command about bitmap @b; @option and @more: what else it needs, for qemu-img and
 * for QMP. */
static void say(struct talk *t, const char *what, const struct kept_bitmap *b, const char *option,
                const char *more)
{
    if (t->qmp)
        fprintf(t->script, "ask %u '{\"execute\": \"block-dirty-bitmap-%s\", \"id\": %u, "
                "\"arguments\": {\"node\": \"d\", \"%s\": \"%s\"%s}}'\n", t->said, what, t->said,
                strcmp(what, "merge") ? "name" : "target", b->name, more);
    else
        fprintf(t->script, "qemu-img bitmap --%s %s -f qcow2 %s %s\n", what, option, t->m->image,
                b->name);
    t->said++;
}

static void add(struct talk *t)
{
    struct kept *k = t->k;
    struct kept_bitmap *b = &k->v[k->n];

    /* The header of so small a cluster may have no room for the first. */
    if (k->n == KEPT_MAX || (!k->n && t->m->shape->cluster == 512))
        return;
    *b = (struct kept_bitmap){ .granularity = 512ULL << below(t, 12), .enabled = below(t, 3) };
    snprintf(b->name, sizeof(b->name), "q%u", k->ever++);
    b->bits = bitmap_new(div_round_up(t->m->size, b->granularity));
    k->n++;
    say(t, "add", b, test_text("%s -g %" PRIu64, b->enabled ? "" : "--disable", b->granularity),
        test_text(", \"persistent\": true, \"granularity\": %" PRIu64 ", \"disabled\": %s",
                  b->granularity, b->enabled ? "false" : "true"));
}

static void take_away(struct talk *t, struct kept_bitmap *b)
{
    say(t, "remove", b, "", "");
    bitmap_free(b->bits);
    *b = t->k->v[--t->k->n];
}

static void merge(struct talk *t, struct kept_bitmap *to, const struct kept_bitmap *from)
{
    if (from == to || from->in_use)
        return;
    say(t, "merge", to, from->name, test_text(", \"bitmaps\": [\"%s\"]", from->name));
    to->loose |= from->loose;
    for (uint64_t i = bitmap_next_set(from->bits, 0); i < bitmap_size(from->bits);
         i = bitmap_next_set(from->bits, i + 1)) {
        uint64_t off = i * from->granularity, end = MIN(off + from->granularity, t->m->size);

        for (uint64_t j = off / to->granularity; j * to->granularity < end; j++)
            bitmap_set_bit(to->bits, j);
    }
}

static void change_one(struct talk *t)
{
    struct kept_bitmap *b;

    if (!t->k->n || !below(t, 3)) {
        add(t);
        return;
    }
    b = &t->k->v[below(t, t->k->n)];
    if (b->in_use || !below(t, 5)) {
        take_away(t, b);
        return;
    }
    switch (below(t, 4)) {
    case 0:
        say(t, "clear", b, "", "");
        bitmap_clear_all(b->bits);
        b->loose = false;
        return;
    case 1:
        b->enabled = !b->enabled;
        say(t, b->enabled ? "enable" : "disable", b, "", "");
        return;
    default:
        merge(t, b, &t->k->v[below(t, t->k->n)]);
    }
}

static void change_some(struct talk *t)
{
    if (t->m->shape->version < 3)
        return;
    for (uint64_t n = below(t, 4); n; n--)
        change_one(t);
}

/* Start the daemon and wait until it answers; then, each command by its number. */
static const char daemon_begins[] =
    "rm -f qmp.in qmp.out nbd.sock && mkfifo qmp.in\n"
    "qemu-storage-daemon --blockdev driver=file,node-name=f,discard=unmap,filename=%s "
    "--blockdev driver=qcow2,node-name=d,discard=unmap,file=f "
    "--nbd-server addr.type=unix,addr.path=nbd.sock "
    "--export type=nbd,id=e,node-name=d,name=d,writable=on "
    "--chardev stdio,id=q --monitor q <qmp.in >qmp.out 2>&1 &\n"
    "trap 'kill $! 2>/dev/null' EXIT INT TERM\n"
    "exec 3>qmp.in\n"
    "ask() {\n"
    "    echo \"$2\" >&3\n"
    "    i=0\n"
    "    while [ $i -lt 3000 ] && ! grep -q \"\\\"id\\\": $1[,}]\" qmp.out; do\n"
    "        sleep 0.01\n"
    "        i=$((i + 1))\n"
    "    done\n"
    "    [ $i -lt 3000 ]\n"
    "    ! grep -q '\"error\"' qmp.out\n"
    "}\n"
    "ask 0 '{\"execute\": \"qmp_capabilities\", \"id\": 0}'\n";

static const char daemon_ends[] =
    "echo '{\"execute\": \"quit\"}' >&3\n"
    "wait $!\n"
    "trap - EXIT\n";

static struct talk begin(struct kept *k, struct model *m, bool qmp)
{
    struct talk t = { k, m, qmp, fopen(work_path("turn.sh"), "w"), 1 };

    assert_non_null(t.script);
    fputs("set -e\n", t.script);
    return t;
}

static void end(struct talk *t)
{
    fclose(t->script);
    if (run("sh turn.sh || { cat turn.sh; [ ! -e qmp.out ] || cat qmp.out; exit 1; }") == 0 &&
        !strstr(run_output(), "failed"))
        return;
    print_message("%s\n", run_output());
    fail_msg("%s, seed %" PRIu64, t->m->shape->name, t->m->first_seed);
}

static void daemon_turn(struct kept *k, struct model *m, unsigned n)
{
    struct talk t = begin(k, m, true);

    fprintf(t.script, daemon_begins, m->image);
    change_some(&t);
    model_peer_script(m, n);
    kept_follow(k, m, true);
    fputs("qemu-io -f raw -d unmap nbd:unix:nbd.sock:exportname=d <turn.txt\n", t.script);
    change_some(&t);
    fputs(daemon_ends, t.script);
    end(&t);
    model_judge(m);
}

void kept_peer_turn(struct kept *k, struct model *m, bool daemon, unsigned n)
{
    struct talk t;

    memset(m->touched, 0, div_round_up(m->size, 512));
    if (daemon) {
        daemon_turn(k, m, n);
        return;
    }
    t = begin(k, m, false);
    change_some(&t);
    end(&t);
    model_peer_turn(m, n);
    kept_follow(k, m, true);
}
