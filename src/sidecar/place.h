/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the sidecar file of a node is, and what else comes from outside: the operator's
 * wishes and the machine's boot.
 */
#ifndef SIDECAR_PLACE_H
#define SIDECAR_PLACE_H

#include "sidecar/format.h"
#include "sidecar/sidecar.h"

struct sidecar_place {
    char *path;                         /* of the file */
    char image[SIDECAR_IMAGE_MAX];      /* absolute, or a URI */
    char kind[SIDECAR_KIND_MAX];        /* of the node: "raw", "qcow2" */
};

/* False with @err: the node has no storage by a name, or a device's file would have no
 * place. Coroutine on its loop. */
MUST_CHECK bool co_sidecar_place(struct node *n, struct sidecar_place *ret, struct err *err);
void sidecar_place_done(struct sidecar_place *p);

bool sidecar_exclusive(void);
void sidecar_boot_id(uint8_t ret[16]);
int64_t sidecar_boot_time_ns(void);     /* when the machine was started, since 1970 */
int64_t sidecar_now_ns(void);           /* the clock that file systems use */

#endif
