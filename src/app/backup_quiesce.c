/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint backup: the guest holds still for the cut, if the user asks for that.
 */
#include "app/backup_command.h"
#include <stdio.h>

#define DEFAULT_SECONDS 10

bool backup_quiesces(const struct backup_command *c)
{
    return c->quiesce.agent || c->quiesce.pre_cut || c->quiesce.post_cut;
}

const char *backup_quiesce_misuse(const struct backup_command *c)
{
    if (!backup_quiesces(c))
        return c->require_quiesce || c->quiesce_seconds
            ? "--require-quiesce and --quiesce-timeout go with --guest-agent, --pre-cut or "
              "--post-cut" : NULL;
    if (!c->control)
        return "--guest-agent, --pre-cut and --post-cut are for a disk that is in use: say "
               "--control";
    return NULL;
}

/* The guest did not hold still. Whether to go on. */
static bool put_up_with_it(struct backup_command *c)
{
    if (c->require_quiesce) {
        c->run.err = c->quiesced.err;
        return false;
    }
    progress_clear(&c->progress);
    fprintf(stderr, "stillpoint backup: %s. The disks are as after a power cut\n",
            c->quiesced.err.text);
    return true;
}

bool backup_hold_guest(struct backup_command *c)
{
    if (!backup_quiesces(c))
        return true;
    c->quiesce.limit_ns = (c->quiesce_seconds ? c->quiesce_seconds : DEFAULT_SECONDS) *
                          NSEC_PER_SEC;
    return quiesce_begin(&c->guest, &c->quiesce, &c->quiesced) || put_up_with_it(c);
}

bool backup_let_guest_go(struct backup_command *c)
{
    if (!c->guest.pid)
        return true;
    quiesce_end(&c->guest, &c->quiesced);
    if (!c->quiesced.held)
        return put_up_with_it(c);
    /* The cut is good; what came after it is for somebody to look at. */
    if (c->quiesced.err.code) {
        progress_clear(&c->progress);
        fprintf(stderr, "stillpoint backup: %s\n", c->quiesced.err.text);
    }
    return true;
}

json_t *backup_quiesce_json(const struct backup_command *c)
{
    const struct quiesce_result *q = &c->quiesced;
    json_t *json = json_pack("{s:b}", "held", q->held);

    if (c->quiesce.agent) {
        json_object_set_new(json, "file-systems", json_integer(q->file_systems));
        json_object_set_new(json, "frozen-ms",
                            json_integer((json_int_t)div_round_up(q->frozen_ns, NSEC_PER_MSEC)));
    }
    if (q->err.code)
        json_object_set_new(json, "error", schema_json_str(q->err.text));
    return json;
}
