/* SPDX-License-Identifier: Apache-2.0
 *
 * Recording operations: see fault_log.h and, for the format, fault.h.
 */
#include "drivers/fault_log.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "drivers/transfer.h"
#include <fcntl.h>
#include <unistd.h>

#define LOG_MAGIC "STILLPOINT-OPLOG"
#define LOG_VERSION 1
#define LOG_HEADER_BYTES 32
#define RECORD_MAGIC 0x46524543U
#define RECORD_BYTES 48

enum { PHASE_BEGIN = 1, PHASE_END = 2 };

struct fault_log {
    int fd;
    uint64_t end;         /* where the next record goes */
};

struct opening {
    const char *path;
    int fd;
};

static int open_blocking(void *arg)
{
    struct opening *j = arg;

    j->fd = open(j->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return j->fd < 0 ? -errno : 0;
}

/* Places are given out in the order of the calls, whatever order the writes end in. */
static int co_append(struct fault_log *log, const struct iovec *iov, int niov, uint64_t len)
{
    uint64_t at = log->end;

    log->end += len;
    return co_write_all(log->fd, at, len, iov, niov, IO_DEFAULT);
}

struct fault_log *co_fault_log_open(const char *path, uint64_t disk_size, struct err *err)
{
    struct opening j = { .path = path };
    unsigned char head[LOG_HEADER_BYTES];
    struct iovec iov = { head, sizeof(head) };
    int r = co_offload(open_blocking, &j);

    if (r < 0) {
        err_errno(err, r, "Could not open '%s'", path);
        return NULL;
    }

    struct fault_log *log = xnew(struct fault_log);

    log->fd = j.fd;
    memcpy(head, LOG_MAGIC, 16);
    store_be64(head + 16, LOG_VERSION);
    store_be64(head + 24, disk_size);
    r = co_append(log, &iov, 1, sizeof(head));
    if (r < 0) {
        err_errno(err, r, "Could not write to '%s'", path);
        co_fault_log_close(log);
        return NULL;
    }
    return log;
}

static int close_blocking(void *arg)
{
    struct fault_log *log = arg;

    return close(log->fd);
}

void co_fault_log_close(struct fault_log *log)
{
    if (!log)
        return;
    (void)co_offload(close_blocking, log);
    free(log);
}

static int co_add(struct fault_log *log, int phase, const struct fault_log_entry *e)
{
    bool with_data = phase == PHASE_BEGIN && e->niov;
    uint64_t data = with_data ? e->len : 0;
    unsigned char rec[RECORD_BYTES] = { 0 };
    struct iovec *iov = xcalloc((size_t)e->niov + 1, sizeof(*iov));

    store_be32(rec, RECORD_MAGIC);
    rec[4] = (unsigned char)phase;
    rec[5] = (unsigned char)e->op;
    store_be64(rec + 8, e->id);
    store_be64(rec + 16, e->off);
    store_be64(rec + 24, e->len);
    store_be32(rec + 32, e->flags);
    store_be32(rec + 36, phase == PHASE_END ? (uint32_t)e->result : 0);
    store_be64(rec + 40, data);
    iov[0] = (struct iovec){ rec, sizeof(rec) };
    if (with_data)
        memcpy(iov + 1, e->iov, (size_t)e->niov * sizeof(*iov));

    int r = co_append(log, iov, with_data ? e->niov + 1 : 1, sizeof(rec) + data);

    free(iov);
    return r;
}

int co_fault_log_begin(struct fault_log *log, const struct fault_log_entry *e)
{
    return co_add(log, PHASE_BEGIN, e);
}

int co_fault_log_end(struct fault_log *log, const struct fault_log_entry *e)
{
    return co_add(log, PHASE_END, e);
}
