/* SPDX-License-Identifier: Apache-2.0
 *
 * Changing the names that stand in the header of an image which is open: for
 * commands (rebase, commit).
 */
#ifndef QCOW2_RENAME_H
#define QCOW2_RENAME_H

#include "block/node.h"

/* Make @file, of format @format, the backing file that the header of the image @n, a
 * writable node of driver qcow2, names; NULL: none. On the disk when it returns true.
 * The node's own child stays what it is: whoever renames sees to it that the content
 * of both is the same wherever @n has nothing of its own, or was wished so. Nothing
 * is looked for under the name. Coroutine on the node's loop. */
MUST_CHECK bool co_qcow2_rename_backing(struct node *n, const char *file, const char *format,
                                        struct err *err);

#endif
