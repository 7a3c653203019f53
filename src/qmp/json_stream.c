/* SPDX-License-Identifier: Apache-2.0
 *
 * One byte at a time: where a JSON value begins and ends.
 */
#include "qmp/json_stream.h"

#define KEPT_BYTES (64 * KiB)

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static bool is_structural(char c)
{
    return c && strchr("{}[],:\"'", c);
}

/* A byte inside a string. A control character cannot be in one: the text ends
 * with it, so that a forgotten quote costs one line and not the connection. */
static bool string_byte(struct json_stream *js, char c)
{
    if ((unsigned char)c < ' ') {
        strbuf_addc(&js->text, ' ');
        return true;
    }
    if (js->escaped) {
        js->escaped = false;
        if (c != '\'')
            strbuf_addc(&js->text, '\\');
        strbuf_addc(&js->text, c);
        return false;
    }
    if (c == '\\') {
        js->escaped = true;
        return false;
    }
    if (c == js->quote) {
        js->quote = 0;
        strbuf_addc(&js->text, '"');
        return js->depth == 0;
    }
    if (c == '"')
        strbuf_addc(&js->text, '\\');
    strbuf_addc(&js->text, c);
    return false;
}

static void open_bracket(struct json_stream *js, char closer)
{
    if (js->depth < sizeof(js->closers))
        js->closers[js->depth] = closer;
    js->depth++;
}

/* True when it ends the value: the last one does, and one of the wrong kind, behind
 * which nobody could tell where it ends. */
static bool close_bracket(struct json_stream *js, char c)
{
    if (js->depth == 0 || --js->depth == 0)
        return true;
    return js->depth < sizeof(js->closers) && js->closers[js->depth] != c;
}

/* A byte outside strings. True when it ends the value. */
static bool plain_byte(struct json_stream *js, char c)
{
    bool first = js->text.len == 0;

    if (first && is_space(c))
        return false;
    if (c == '"' || c == '\'') {
        js->quote = c;
        strbuf_addc(&js->text, '"');
        return false;
    }
    strbuf_addc(&js->text, c);
    if (c == '{' || c == '[') {
        open_bracket(js, c == '{' ? '}' : ']');
        return false;
    }
    if (c == '}' || c == ']')
        return close_bracket(js, c);
    if (js->depth == 0 && is_structural(c))
        return true;
    js->scalar = js->depth == 0;
    return false;
}

enum json_stream_state json_stream_feed(struct json_stream *js, const char *bytes, size_t len,
                                        size_t *ret_taken)
{
    size_t i = 0;

    while (i < len) {
        char c = bytes[i];

        if (js->scalar && (is_space(c) || is_structural(c))) {
            *ret_taken = i;
            return JSON_STREAM_VALUE;
        }
        if (js->text.len >= LIMIT_QMP_INPUT) {
            *ret_taken = i;
            return JSON_STREAM_TOO_LONG;
        }
        i++;
        if (js->quote ? string_byte(js, c) : plain_byte(js, c)) {
            *ret_taken = i;
            return JSON_STREAM_VALUE;
        }
    }
    *ret_taken = len;
    return JSON_STREAM_MORE;
}

void json_stream_next(struct json_stream *js)
{
    /* A connection that sent one long message does not keep its room for ever. */
    if (js->text.cap > KEPT_BYTES)
        strbuf_done(&js->text);
    else
        strbuf_cut(&js->text, 0);
    js->depth = 0;
    js->quote = 0;
    js->escaped = js->scalar = false;
}

void json_stream_done(struct json_stream *js)
{
    strbuf_done(&js->text);
    json_stream_next(js);
}
