/* SPDX-License-Identifier: Apache-2.0
 *
 * What a sidecar file proves when it is found: pure. docs/dirty-bitmaps.md, I-S5 to I-S7.
 */
#ifndef SIDECAR_PROOF_H
#define SIDECAR_PROOF_H

#include "sidecar/format.h"

/* What is known of the disk as it is found. */
struct sidecar_facts {
    uint8_t boot_id[16];
    int64_t boot_time_ns;        /* when the machine was started, since 1970 */
    int64_t now_ns;
    bool exclusive;              /* the operator: nobody else writes to devices and exports */
    uint64_t disk_size;
    uint32_t n_storages;
    struct storage_identity storages[NODE_STORAGES_MAX];
    bool has_beat;
    struct sidecar_beat beat;
};

enum sidecar_verdict {
    SIDECAR_EXACT,      /* the bits are as the last write left them */
    SIDECAR_REGIONS,    /* the power was cut: all of the regions in the log counts as dirty */
    SIDECAR_USELESS,    /* others may have written: @why says so */
};

/* After a crash: so much later than the last beat a file's times may be. A beat in the page
 * cache is as young as 100 ms, one on the disk as 5 s and the time a sync takes. */
#define SIDECAR_BEAT_SLACK_NS ((int64_t)NSEC_PER_SEC)
#define SIDECAR_BEAT_CUT_SLACK_NS ((int64_t)(60 * NSEC_PER_SEC))

enum sidecar_verdict sidecar_judge(const struct sidecar_header *h, const struct sidecar_facts *f,
                                   struct err *why);

#endif
