/* SPDX-License-Identifier: Apache-2.0
 *
 * The file that driver `fault` records operations in; its format is in fault.h.
 */
#ifndef DRIVERS_FAULT_LOG_H
#define DRIVERS_FAULT_LOG_H

#include "drivers/fault.h"

struct fault_log;

/* Replaces the file @path. NULL with @err. Suspends. */
struct fault_log *co_fault_log_open(const char *path, uint64_t disk_size, struct err *err);
void co_fault_log_close(struct fault_log *log);   /* takes NULL */

struct fault_log_entry {
    enum fault_op op;
    uint64_t id;
    uint64_t off, len;
    unsigned flags;
    int result;
    const struct iovec *iov;   /* the data of a write, @len bytes */
    int niov;
};

/* Return when the record is in the file. Records stand in the order of the calls.
 * 0 or -errno. Suspend. */
MUST_CHECK int co_fault_log_begin(struct fault_log *log, const struct fault_log_entry *e);
MUST_CHECK int co_fault_log_end(struct fault_log *log, const struct fault_log_entry *e);

#endif
