/* SPDX-License-Identifier: Apache-2.0
 *
 * fault: a filter that makes storage misbehave and writes down what it was asked
 * to do. For tests, from outside through blockdev-add and from inside through the
 * calls below, which belong to the node's loop and do not suspend.
 *
 * An operation that comes is counted, then suffers what the rules have for it,
 * and only then reaches the node below: one that fails has done nothing.
 *
 * The record (option "record") is what the storage below was really asked, for
 * replaying what a power cut could have left. It is a file of big-endian numbers:
 *
 *   header   16 bytes "STILLPOINT-OPLOG", u64 version (1), u64 size of the disk
 *   record   u32 0x46524543, u8 1 begin or 2 end, u8 operation (enum fault_op),
 *            u16 zero, u64 id (of both begin and end), u64 offset, u64 length,
 *            u32 flags (enum req_flags), i32 result (end only; 0 or -errno),
 *            u64 bytes of data that follow (of a write's begin; else 0)
 *
 * A begin is in the file before the operation starts, an end before its caller
 * learns of it, in this order. So where the file is cut at any record: a write has
 * to be there if it ended with 0 before a flush began that ended with 0 (or ended
 * with 0 and has REQ_FUA); any other that began may be there, in part, or not.
 */
#ifndef DRIVERS_FAULT_H
#define DRIVERS_FAULT_H

#include "block/driver.h"

enum fault_op {
    FAULT_READ,
    FAULT_WRITE,
    FAULT_WRITE_ZEROES,
    FAULT_DISCARD,
    FAULT_FLUSH,
    FAULT_STATUS,
    FAULT_RESIZE,
    FAULT_ANY,               /* in rules and counters: each of those above */
};

struct fault_rule {
    enum fault_op op;
    uint64_t nth;            /* the how manieth that it applies to, from 1; 0: to each */
    uint64_t offset, length; /* only where it touches this range; length 0: anywhere */
    int error;               /* negative errno that it fails with; 0: it does not */
    uint64_t delay_ns;       /* wait before */
    bool hang;               /* wait until fault_release or cancelling */
    bool cut;                /* the power goes: this and whatever comes later fails (-EIO) */
    bool once;               /* the rule is gone when it has applied once */
};

/* @n is a node of driver "fault" in all of these. */
void fault_add_rule(struct node *n, const struct fault_rule *rule);
void fault_clear_rules(struct node *n);

/* Operations that have come, and those to which a rule applied. */
uint64_t fault_count(const struct node *n, enum fault_op op);
uint64_t fault_applied(const struct node *n);

/* Requests that hang now, and the call that lets them go on. */
unsigned fault_hung(const struct node *n);
void fault_release(struct node *n);

/* Power off or on again. */
void fault_set_cut(struct node *n, bool cut);
bool fault_is_cut(const struct node *n);

#endif
