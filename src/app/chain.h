/* SPDX-License-Identifier: Apache-2.0
 *
 * The images that stand on each other, for commands that change them: which they
 * are, and opening them so that several may be written.
 */
#ifndef APP_CHAIN_H
#define APP_CHAIN_H

#include "block/graph.h"

struct chain_layer {
    char *name;                  /* path; the first as the user typed it */
    char *format;
    char *backing_name;          /* as it names the next one; NULL for the last */
};

struct chain {
    struct chain_layer *v;       /* the topmost first */
    unsigned n;
};

/* Which images @name stands on, by their headers. @format NULL: by the name. Names in
 * headers are followed only where images may name files. Coroutine. */
MUST_CHECK bool co_chain_list(const char *name, const char *format, struct chain *ret,
                              struct err *err);
void chain_done(struct chain *c);

/* Open layer @i with the layer of node @below (NULL: whatever its header names) as its
 * backing file. A reference, or NULL with @err: a sentence for who has it open. */
struct node *co_chain_open(const struct chain *c, unsigned i, bool writable, struct node *below,
                           struct err *err);

/* Whether both are the same file. May block. */
bool chain_same_file(const char *a, const char *b);

/* Whether @n is a qcow2 image with extended L2 entries: 32 subclusters in a cluster. */
bool chain_has_subclusters(struct node *n);

/* Snapshots inside an overlay read from its backing file too: refuse, unless @allowed, to
 * change what the one of @n reads as below snapshots. @name is that of the image. */
MUST_CHECK bool chain_spare_snapshots(struct node *n, const char *name, bool allowed,
                                      struct err *err);

/* The option that allows it. */
#define CLI_CHANGE_SNAPSHOTS(var) \
    { "change-snapshots", 0, CLI_FLAG, (var), NULL, \
      "although snapshots inside IMAGE will read differently where they have nothing of their own" }

/* Open an image that is to be changed. A reference, or NULL with @err: a sentence for
 * who has it open. The second takes what blockdev-add would; @name is for the sentence. */
struct node *co_open_to_change(const struct open_file_opts *o, struct err *err);
struct node *co_open_json_to_change(const json_t *json, const char *name, struct err *err);

#endif
