/* SPDX-License-Identifier: Apache-2.0
 *
 * Emptying an overlay.
 */
#include "drivers/qcow2/empty.h"
#include "drivers/qcow2/qcow2.h"

bool co_qcow2_make_empty(struct node *n, struct err *err)
{
    struct qcow2 *s = n->state;
    int r = s->raw_data ? -ENOTSUP : co_qcow2_begin_write(s);

    if (r == 0)
        r = co_qcow2_forget_all(s);
    if (r == 0)
        r = co_qcow2_sync(s);
    /* Not before the entries are gone from the disk: they would show it. */
    if (r == 0 && s->geo.data_file && s->pass_discard_request) {
        int ignored = co_qcow2_zero_data(s, 0, s->node->size, REQ_MAY_UNMAP | REQ_NO_FALLBACK);

        (void)ignored;          /* then the file keeps the space */
    }
    return r == 0 || err_errno(err, r, "Could not empty the image");
}
