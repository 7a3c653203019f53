/* SPDX-License-Identifier: Apache-2.0
 *
 * Growing strings. The buffer doubles, so adding is linear over all.
 */
#include "base/strbuf.h"
#include "base/mem.h"
#include <stdio.h>

/* Make room for @n more bytes and the terminator. */
static void reserve(struct strbuf *sb, size_t n)
{
    if (n < sb->cap - sb->len)
        return;
    sb->cap = MAX(sb->cap * 2, sb->len + n + 1);
    sb->cap = MAX(sb->cap, (size_t)64);
    sb->text = xrealloc(sb->text, sb->cap);
}

void strbuf_addn(struct strbuf *sb, const char *bytes, size_t n)
{
    reserve(sb, n);
    memcpy(sb->text + sb->len, bytes, n);
    sb->len += n;
    sb->text[sb->len] = '\0';
}

void strbuf_add(struct strbuf *sb, const char *text)
{
    strbuf_addn(sb, text, strlen(text));
}

void strbuf_addc(struct strbuf *sb, char c)
{
    strbuf_addn(sb, &c, 1);
}

void strbuf_vaddf(struct strbuf *sb, const char *fmt, va_list ap)
{
    va_list again;

    va_copy(again, ap);
    reserve(sb, 0);
    int n = vsnprintf(sb->text + sb->len, sb->cap - sb->len, fmt, ap);
    assert(n >= 0);
    if ((size_t)n >= sb->cap - sb->len) {
        reserve(sb, n);
        n = vsnprintf(sb->text + sb->len, sb->cap - sb->len, fmt, again);
    }
    va_end(again);
    sb->len += n;
}

void strbuf_addf(struct strbuf *sb, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    strbuf_vaddf(sb, fmt, ap);
    va_end(ap);
}

void strbuf_cut(struct strbuf *sb, size_t len)
{
    assert(len <= sb->len);
    sb->len = len;
    if (sb->text)
        sb->text[len] = '\0';
}

const char *strbuf_text(const struct strbuf *sb)
{
    return sb->text ? sb->text : "";
}

char *strbuf_steal(struct strbuf *sb)
{
    char *text = sb->text ? sb->text : xstrdup("");

    *sb = (struct strbuf)STRBUF_INIT;
    return text;
}

void strbuf_done(struct strbuf *sb)
{
    free(sb->text);
    *sb = (struct strbuf)STRBUF_INIT;
}
