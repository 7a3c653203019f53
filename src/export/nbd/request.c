/* SPDX-License-Identifier: Apache-2.0
 *
 * Which flags a command may carry, whether it writes and what bounds it has:
 * a table, and one function that applies it. doc/proto.md, "Request types",
 * "Command flags" and "Error values"; where those leave a choice, QEMU's.
 */
#include "export/nbd/request.h"
#include "base/limits.h"

struct rule {
    uint16_t flags;         /* that are valid; FUA is valid everywhere */
    bool known;
    bool writes;
    bool no_range;          /* offset and length must be zero */
    bool bounded;           /* length is at most LIMIT_NBD_REQUEST_BYTES */
    int past_end;           /* the error for a range that leaves the export */
};

static const struct rule rules[] = {
    [NBD_CMD_READ] = { .known = true, .flags = NBD_CMD_FLAG_DF, .bounded = true,
                       .past_end = -EINVAL },
    [NBD_CMD_WRITE] = { .known = true, .writes = true, .bounded = true, .past_end = -ENOSPC },
    [NBD_CMD_FLUSH] = { .known = true, .no_range = true },
    [NBD_CMD_TRIM] = { .known = true, .writes = true, .past_end = -EINVAL },
    [NBD_CMD_CACHE] = { .known = true, .bounded = true, .past_end = -EINVAL },
    [NBD_CMD_WRITE_ZEROES] = { .known = true, .writes = true, .past_end = -ENOSPC,
                               .flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO },
    [NBD_CMD_BLOCK_STATUS] = { .known = true, .flags = NBD_CMD_FLAG_REQ_ONE,
                               .past_end = -EINVAL },
};

static int refuse(int error, const char *why, const char **ret_why)
{
    *ret_why = why;
    return error;
}

static int check_range(const struct nbd_request *rq, const struct nbd_session *s,
                       const struct rule *rule, const char **ret_why)
{
    if (rule->no_range) {
        if (rq->offset || rq->length)
            return refuse(-EINVAL, "offset and length of a flush must be zero", ret_why);
        return 0;
    }
    if (rule->bounded && rq->length > LIMIT_NBD_REQUEST_BYTES) {
        /* EOVERFLOW is for a read that would be possible in fragments. */
        return refuse(rq->flags & NBD_CMD_FLAG_DF ? -EOVERFLOW : -EINVAL,
                      "the request is longer than 32 MiB", ret_why);
    }
    if (rq->offset > s->size || rq->length > s->size - rq->offset)
        return refuse(rule->past_end, "the request goes past the end of the export", ret_why);
    return 0;
}

int nbd_check_request(const struct nbd_request *rq, const struct nbd_session *s,
                      const char **ret_why)
{
    const struct rule *rule = rq->type < ARRAY_SIZE(rules) ? &rules[rq->type] : NULL;
    int r;

    if (!rule || !rule->known)
        return refuse(-EINVAL, "unknown command", ret_why);
    if (rule->writes && !s->writable)
        return refuse(-EPERM, "the export is read-only", ret_why);
    if (rule->writes && s->discard_only && rq->type != NBD_CMD_TRIM)
        return refuse(-EPERM, "the export shows a moment that is past: only TRIM is for it",
                      ret_why);
    r = check_range(rq, s, rule, ret_why);
    if (r < 0)
        return r;
    if (rq->flags & ~(rule->flags | NBD_CMD_FLAG_FUA))
        return refuse(-EINVAL, "a flag that the command does not have", ret_why);
    if ((rq->flags & NBD_CMD_FLAG_DF) && !s->structured)
        return refuse(-EINVAL, "DF needs structured replies", ret_why);
    if (rq->type == NBD_CMD_BLOCK_STATUS) {
        if (!s->contexts)
            return refuse(-EINVAL, "no metadata context was negotiated", ret_why);
        if (!rq->length)
            return refuse(-EINVAL, "block status needs a length", ret_why);
    }
    return 0;
}

uint32_t nbd_request_extents(const struct nbd_request *rq)
{
    if (rq->flags & NBD_CMD_FLAG_REQ_ONE)
        return 1;
    return MIN(rq->length, (uint32_t)LIMIT_NBD_EXTENTS);
}

uint32_t nbd_request_buffer(const struct nbd_request *rq, const struct nbd_session *s)
{
    switch (rq->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return rq->length;
    case NBD_CMD_CACHE:
        return MIN(rq->length, (uint32_t)LIMIT_NBD_CACHE_STEP_BYTES);
    case NBD_CMD_BLOCK_STATUS:
        return (uint32_t)__builtin_popcountll(s->contexts) *
               (NBD_STATUS_CHUNK_BYTES + nbd_request_extents(rq) * NBD_EXTENT_BYTES);
    default:
        return 0;
    }
}
