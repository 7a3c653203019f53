/* SPDX-License-Identifier: Apache-2.0
 *
 * Transactions: actions that happen together, at one instant of all the disks that
 * they are about, or not at all. A command that has an action is a transaction of
 * that one action, so that both go the same way:
 *
 *   co_prepare   each, in order: everything that can fail. Guests notice nothing
 *                (all doors are shut, waiting INSTANT_TIMEOUT_NS at most)
 *   cut          each, in order: the instant
 *                (all doors are opened)
 *   commit       each, in order        or    co_abort   those that were prepared,
 *   co_clean     each                                   the last first
 *
 * docs/point-in-time.md, I-D4 and I-D5. Everything here is for the main loop except
 * where it says otherwise.
 */
#ifndef QMP_TRANSACTION_H
#define QMP_TRANSACTION_H

#include "block/dirty.h"
#include "job/job_txn.h"
#include "qmp/impl.h"

struct action_ops;

/* What the actions of one transaction share. */
struct transaction;

/* One action of a transaction that is under way. */
struct action {
    const struct qmp_call *call;
    const struct action_ops *ops;
    const void *args;            /* decoded, of .args */
    void *state;                 /* .state_size bytes, zeroed at first */
    void *ret;                   /* of the command that is this action alone: what it returns,
                                  * for co_clean to fill in; NULL: it is one of several */
    struct transaction *txn;
    struct job_txn *group;       /* its job ends together with others; NULL: alone */
    bool committed;

    /* For co_prepare to fill in. */
    struct node *disk;           /* stands still for cut: a reference; NULL: none has to */
    struct node **others;        /* more nodes that do; borrowed from .state */
    size_t n_others;
    struct job *job;             /* that commit starts; borrowed */
};

struct action_ops {
    const char *name;            /* of the action and, if it has one, the command */
    const struct schema_type *args;
    const struct schema_type *wrapper;    /* ACTION_WRAPPER of args */
    size_t state_size;
    bool may_group;              /* completion-mode=grouped makes sense */

    /* False: nothing is left of it. */
    bool (*co_prepare)(struct action *a, struct err *err);
    /* On the disk's loop, with the doors of all disks shut. Neither fails nor suspends.
     * May be NULL, as those that follow. */
    void (*cut)(struct action *a);
    /* On the disk's loop if there is one. Neither fails nor suspends. */
    void (*commit)(struct action *a);
    void (*co_abort)(struct action *a);
    void (*co_clean)(struct action *a);
};

/* QAPI's TransactionAction has the arguments in a member "data"; decoded they are the
 * arguments themselves. */
#define ACTION_WRAPPER(type_name, args_type, struct_size) \
    { \
        .name = type_name, .kind = SCHEMA_STRUCT, .size = struct_size, \
        .members = (const struct schema_member[]){ \
            { "data", args_type, 0, -1, "the arguments" }, SCHEMA_END, \
        }, \
    }

/* Tables that end with an entry without name, one for each area. */
extern const struct action_ops qmp_backup_actions[], qmp_bitmap_actions[], qmp_fleece_actions[];

/* One transaction of @n actions, of which .ops and .args are filled in. @group: their jobs
 * end together. */
bool co_transaction(const struct qmp_call *call, struct action *actions, size_t n, bool group,
                    struct err *err);

/* A command that is an action. @ret: see struct action. */
bool co_transaction_single(const struct qmp_call *call, const struct action_ops *ops,
                           const void *args, void *ret, struct err *err);

/* ---- bitmaps ---------------------------------------------------------------------------
 * A bitmap that an action is about is held (dirty.h) from co_prepare to the end, so that
 * other monitors leave it alone; further actions of the same transaction may use it.
 * On the loop of its node. */

/* Hold @bm unless the transaction does already. @allow as for dirty_bitmap_check. */
MUST_CHECK bool action_hold_bitmap(struct action *a, struct dirty_bitmap *bm, unsigned allow,
                                   struct err *err);
/* No further action may use @bm, which is held. */
void action_reserve_bitmap(struct action *a, struct dirty_bitmap *bm);
/* They may again: @a, which reserved it, is undone. */
void action_unreserve_bitmap(struct action *a, struct dirty_bitmap *bm);
/* Let go of @bm for somebody who holds it himself from here on. False: the transaction does not
 * hold it, or another action has reserved it. */
bool action_yield_bitmap(struct action *a, struct dirty_bitmap *bm);

#endif
