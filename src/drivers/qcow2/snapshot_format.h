/* SPDX-License-Identifier: Apache-2.0
 *
 * The snapshot table as pure code (QEMU docs/interop/qcow2.rst, "Snapshots"): bytes
 * of an image to structs and back, everything checked. Entries that are kept are
 * kept byte for byte, with what extra data they have. An entry of which only the
 * content cannot be is one too, with a flaw: it costs the others nothing, and what it
 * refers to stays in use. No I/O, any thread;
 * tests/fuzz/fuzz_qcow2_tables.c feeds it rubbish.
 */
#ifndef QCOW2_SNAPSHOT_FORMAT_H
#define QCOW2_SNAPSHOT_FORMAT_H

#include "drivers/qcow2/format.h"

#define QCOW2_NO_ICOUNT UINT64_MAX
#define QCOW2_SNAPSHOT_NAME_MAX 255      /* bytes of a new one's; QEMU shows no more */

struct qcow2_snapshot {
    const char *id, *name;       /* texts as in the image: any bytes but 0 */
    const char *flaw;            /* why it cannot be used ("its L1 table ..."), a literal; or
                                  * NULL. With one, what is below stands as in the image */
    uint64_t l1_off;
    uint32_t l1_entries;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
    uint64_t vm_state_bytes;
    uint64_t disk_size;          /* 0: the entry does not say */
    uint64_t icount;             /* or QCOW2_NO_ICOUNT */
    const uint8_t *raw;          /* the entry as in the table */
    uint32_t raw_bytes;          /* a multiple of 8 */
};

struct qcow2_snapshots {
    struct qcow2_snapshot *v;
    uint32_t n;
    uint64_t bytes;              /* of the table in the image */
    uint8_t *raw;                /* the table; entries point into it */
    char *texts;
};

/* Parse a table of @n entries (at most LIMIT_QCOW2_SNAPSHOTS) of which the first
 * @len bytes are at @buf. Owns a copy of them. False with @err; -EAGAIN there: the
 * table goes on behind @len, read more. */
MUST_CHECK bool qcow2_snapshots_parse(const struct qcow2_geometry *g, const void *buf, uint64_t len,
                                      uint32_t n, struct qcow2_snapshots *ret, struct err *err);
/* Of a zeroed or parsed one; leaves it empty. */
void qcow2_snapshots_done(struct qcow2_snapshots *t);

/* Bytes of the table entry that qcow2_snapshot_encode writes for @s, or 0 if its
 * texts are too long. All but raw and raw_bytes is used. */
uint32_t qcow2_snapshot_entry_bytes(const struct qcow2_snapshot *s);
void qcow2_snapshot_encode(const struct qcow2_snapshot *s, void *buf);

/* The one that @which means, as people and qemu-img say it: an id or a name, or
 * "snapshot.id=ID", "snapshot.name=NAME", or both with a comma between. What is one
 * snapshot's id and another's name is refused, and one with a flaw is. -ENOENT if there
 * is none. */
MUST_CHECK bool qcow2_snapshots_find(const struct qcow2_snapshots *t, const char *which,
                                     uint32_t *ret, struct err *err);

#endif
