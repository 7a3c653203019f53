/* SPDX-License-Identifier: Apache-2.0
 *
 * The one funnel for requests from outside: whatever a client sends is judged
 * here, once. What passes is inside the export, has only flags that mean
 * something, and is allowed; layers below assert that. Pure; any thread.
 */
#ifndef EXPORT_NBD_REQUEST_H
#define EXPORT_NBD_REQUEST_H

#include "export/nbd/proto.h"

/* What negotiation settled for one connection. */
struct nbd_session {
    uint64_t size;           /* of the export, bytes */
    bool writable;
    bool discard_only;       /* writable for TRIM alone */
    bool structured;         /* NBD_OPT_STRUCTURED_REPLY */
    uint64_t contexts;       /* that were selected, by index */
};

/* 0, or the negative errno to answer with and why, as a static text for the
 * client. NBD_CMD_DISC is none of its business. */
MUST_CHECK int nbd_check_request(const struct nbd_request *rq, const struct nbd_session *s,
                                 const char **ret_why);

/* Memory that carrying out a request that passed needs, bytes. */
uint32_t nbd_request_buffer(const struct nbd_request *rq, const struct nbd_session *s);
/* Extents that the answer to a block status has at most for each context. */
uint32_t nbd_request_extents(const struct nbd_request *rq);

#endif
