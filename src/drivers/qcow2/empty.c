/* SPDX-License-Identifier: Apache-2.0
 *
 * Emptying an overlay.
 */
#include "drivers/qcow2/empty.h"
#include "drivers/qcow2/qcow2.h"

bool co_qcow2_make_empty(struct node *n, struct err *err)
{
    struct qcow2 *s = n->state;
    int r = co_qcow2_begin_write(s);

    if (r == 0)
        r = co_qcow2_forget_all(s);
    if (r == 0)
        r = co_qcow2_sync(s);
    return r == 0 || err_errno(err, r, "Could not empty the image");
}
