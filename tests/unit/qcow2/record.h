/* SPDX-License-Identifier: Apache-2.0
 *
 * Power cuts: what driver `fault` recorded of the requests to an image file, and
 * replays of it that stop at any moment. A replay keeps what had to be on the disk
 * there, and of the rest a random part, some of it torn by sectors.
 */
#ifndef TESTS_QCOW2_RECORD_H
#define TESTS_QCOW2_RECORD_H

#include "drivers/fault.h"
#include "qcow2_test.h"

struct op {
    uint64_t id, off, len;
    enum fault_op what;
    const unsigned char *data;   /* of a write */
    size_t begin, end;           /* places in the record, by number; end 0: none */
    int result;
};

struct record {
    unsigned char *bytes;
    size_t n_bytes;
    struct op *ops;
    size_t n_ops;
    size_t n;                    /* begins and ends together, from 1 */
};

/* A file of work_dir(). free() it. */
unsigned char *load_file(const char *name, size_t *ret_len);
void copy_file(const char *from, const char *to);
/* The file "record" of work_dir(), which option "record" of driver fault wrote. */
struct record load_record(void);
/* The same of another file there. */
struct record load_record_of(const char *name);
void record_done(struct record *r);
/* How many records are in the first @bytes of the file that it came from. */
size_t record_at(const struct record *r, uint64_t bytes);
/* Records that are in that file by now. What was begun before the last of them, such as
 * work in the background, is waited for until it is there too. Coroutine. */
size_t co_count_records(void);

/* A number of records to stop after; often when a flush is nearly done, which is
 * the most interesting moment. */
size_t pick_cut(const struct record *r, uint64_t *seed);
/* Make @after: what a power cut after @cut records leaves of @before. */
void replay(const char *before, const char *after, const struct record *r, size_t cut,
            uint64_t *seed);
/* The same of a process that was killed: all that had ended is there. */
void replay_killed(const char *before, const char *after, const struct record *r, size_t cut,
                   uint64_t *seed);

#endif
