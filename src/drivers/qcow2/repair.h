/* SPDX-License-Identifier: Apache-2.0
 *
 * Private to repair: new refcounts from what was counted.
 */
#ifndef QCOW2_REPAIR_H
#define QCOW2_REPAIR_H

#include "drivers/qcow2/check_int.h"

/* Write refcount blocks and a table for what is counted to free clusters and point
 * the header to them. */
MUST_CHECK int co_check_rebuild(struct check *c);

#endif
