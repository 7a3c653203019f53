/* SPDX-License-Identifier: Apache-2.0
 *
 * A string that grows: help texts, command output, names put together. For
 * bounded, human-sized text; memory that is out aborts.
 */
#ifndef BASE_STRBUF_H
#define BASE_STRBUF_H

#include "base/base.h"
#include <stdarg.h>

struct strbuf {
    char *text;           /* always NUL-terminated once something was added */
    size_t len, cap;
};

#define STRBUF_INIT { 0 }

void strbuf_add(struct strbuf *sb, const char *text);
void strbuf_addn(struct strbuf *sb, const char *bytes, size_t n);
void strbuf_addc(struct strbuf *sb, char c);
void strbuf_addf(struct strbuf *sb, const char *fmt, ...) PRINTF_LIKE(2, 3);
void strbuf_vaddf(struct strbuf *sb, const char *fmt, va_list ap) PRINTF_LIKE(2, 0);

/* Drop what lies behind the first @len bytes. */
void strbuf_cut(struct strbuf *sb, size_t len);

/* The text so far, "" if nothing was added; valid until the next call. */
const char *strbuf_text(const struct strbuf *sb);

/* Hand the text over (free() it); never NULL. @sb is empty afterwards. */
char *strbuf_steal(struct strbuf *sb);

/* Free the text. @sb is empty afterwards and may be used again. */
void strbuf_done(struct strbuf *sb);

/* For CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT; */
#define CLEANUP_STRBUF __attribute__((cleanup(strbuf_done)))

#endif
