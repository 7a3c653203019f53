/* SPDX-License-Identifier: Apache-2.0
 *
 * The disks of a daemon, by the names that people give: a node's, or an export's id.
 */
#ifndef APP_SERVED_H
#define APP_SERVED_H

#include "app/qmp_client.h"

/* What query-named-block-nodes says of the disk @name: a new reference. NULL with @err, which says
 * which disks the daemon at the control socket @control has. */
json_t *served_find(struct qmp_client *c, const char *control, const char *name, struct err *err);

/* "The daemon at 'control.sock' has no disk 'x'; it serves ...". Returns false. */
bool served_no_such_disk(struct qmp_client *c, const char *control, const char *name,
                         struct err *err);

#endif
