/* SPDX-License-Identifier: Apache-2.0
 *
 * Cuts a stream of bytes into JSON texts, as QEMU's monitor does: values may
 * span lines or follow each other on one line, strings may stand in single
 * quotes, and after rubbish it finds its feet again (QEMU qobject/json-lexer.c
 * and json-streamer.c; docs/interop/qmp-spec.rst, "Pitfalls"). Whether a text is
 * good JSON is for the parser to say; here it is only found where it ends.
 *
 * Pure, bounded by LIMIT_QMP_INPUT; any thread.
 */
#ifndef QMP_JSON_STREAM_H
#define QMP_JSON_STREAM_H

#include "base/limits.h"
#include "base/strbuf.h"

struct json_stream {
    struct strbuf text;      /* of the value so far; quotes are double ones here */
    unsigned depth;          /* brackets open */
    char closers[LIMIT_JSON_DEPTH];   /* what closes each, as far as there is room */
    char quote;              /* inside a string: how it began; else 0 */
    bool escaped;            /* after a backslash in a string */
    bool scalar;             /* inside a word or number at the top */
};

#define JSON_STREAM_INIT { .text = STRBUF_INIT }

enum json_stream_state {
    JSON_STREAM_MORE,        /* all bytes taken, no value ended yet */
    JSON_STREAM_VALUE,       /* .text is a whole text; json_stream_next before going on */
    JSON_STREAM_TOO_LONG,    /* this stream cannot be followed any further */
};

/* Take bytes until one value has ended; *ret_taken tells how many. */
enum json_stream_state json_stream_feed(struct json_stream *js, const char *bytes, size_t len,
                                        size_t *ret_taken);
/* Forget the value that was taken out. */
void json_stream_next(struct json_stream *js);
void json_stream_done(struct json_stream *js);

#endif
