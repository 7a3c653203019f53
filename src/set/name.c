/* SPDX-License-Identifier: Apache-2.0
 *
 * Names in a backup set, and instants as text.
 */
#include "set/name.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include <limits.h>
#include <stdio.h>
#include <time.h>

#define MANIFEST_SUFFIX ".json"
#define PENDING_SUFFIX ".json.pending"
#define MS_PER_DAY (24 * 60 * 60 * 1000LL)

static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/* ---- points and files --------------------------------------------------------- */

char *set_id_of(int64_t instant_ms, unsigned again)
{
    time_t seconds = (time_t)(instant_ms / 1000);
    char text[SET_INSTANT_TEXT];
    struct tm tm;

    gmtime_r(&seconds, &tm);
    strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &tm);
    return again > 1 ? xasprintf("%s-%u", text, again) : xstrdup(text);
}

bool set_id_wellformed(const char *id)
{
    size_t n = strlen(id);

    return n && n <= SET_ID_MAX && *id != '-' &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == n;
}

bool set_file_wellformed(const char *name)
{
    size_t n = strlen(name);

    if (!n || n > NAME_MAX || *name == '.' || strpbrk(name, "/:") || strcmp(name, SET_FILE) == 0)
        return false;
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)name[i] < ' ' || name[i] == 0x7f)
            return false;
    }
    return true;
}

char *set_manifest_name(const char *id)
{
    return xasprintf("%s" MANIFEST_SUFFIX, id);
}

char *set_pending_name(const char *id)
{
    return xasprintf(".%s" PENDING_SUFFIX, id);
}

/* What stands before @suffix, if it is an id. */
static char *id_before(const char *name, const char *suffix)
{
    size_t n = strlen(name), s = strlen(suffix);
    CLEANUP(free) char *id = n > s && strcmp(name + n - s, suffix) == 0 ? xstrndup(name, n - s)
                                                                       : NULL;

    return id && set_id_wellformed(id) ? MOVE(id) : NULL;
}

char *set_id_of_manifest(const char *name)
{
    return strcmp(name, SET_FILE) == 0 ? NULL : id_before(name, MANIFEST_SUFFIX);
}

char *set_id_of_pending(const char *name)
{
    return *name == '.' ? id_before(name + 1, PENDING_SUFFIX) : NULL;
}

bool set_name_is_temporary(const char *name)
{
    static const char *const endings[] = { ".stillpoint-partial", ".json.new", ".pending.new" };
    size_t n = strlen(name);

    for (size_t i = 0; *name == '.' && i < ARRAY_SIZE(endings); i++) {
        size_t e = strlen(endings[i]);

        if (n > e && strcmp(name + n - e, endings[i]) == 0)
            return true;
    }
    return false;
}

char *set_image_name(const char *id, const char *disk)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    strbuf_addf(&sb, "%s-", id);
    for (const char *p = disk; *p; p++) {
        if (strchr(letters, *p) || strchr("-_.", *p))
            strbuf_addc(&sb, *p);
        else
            strbuf_addf(&sb, "%%%02X", (unsigned char)*p);
    }
    strbuf_add(&sb, ".qcow2");
    return strbuf_steal(&sb);
}

/* ---- bitmaps -------------------------------------------------------------------- */

char *set_bitmap_prefix(const char *uuid)
{
    return xasprintf("set-%s-", uuid);
}

char *set_bitmap_name(const char *uuid, const char *id)
{
    return xasprintf("set-%s-%s", uuid, id);
}

bool set_uuid_wellformed(const char *uuid)
{
    static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

    if (strlen(uuid) != strlen(shape))
        return false;
    for (size_t i = 0; shape[i]; i++) {
        if (shape[i] == '-' ? uuid[i] != '-' : !strchr("0123456789abcdef", uuid[i]))
            return false;
    }
    return true;
}

/* ---- instants --------------------------------------------------------------------- */

char *set_instant_text(int64_t ms, char buf[static SET_INSTANT_TEXT])
{
    time_t seconds = (time_t)(ms / 1000);
    size_t n;
    struct tm tm;

    gmtime_r(&seconds, &tm);
    n = strftime(buf, SET_INSTANT_TEXT, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(buf + n, SET_INSTANT_TEXT - n, ".%03dZ", (int)(ms % 1000));
    return buf;
}

/* @n digits of *p, which is moved behind them. */
static bool digits(const char **p, unsigned n, int *ret)
{
    int v = 0;

    for (unsigned i = 0; i < n; i++, (*p)++) {
        if (**p < '0' || **p > '9')
            return false;
        v = 10 * v + (**p - '0');
    }
    *ret = v;
    return true;
}

static bool skip(const char **p, const char *one_of)
{
    if (!**p || !strchr(one_of, **p))
        return false;
    (*p)++;
    return true;
}

static bool parse_date(const char **p, struct tm *tm)
{
    if (!digits(p, 4, &tm->tm_year) || !skip(p, "-") || !digits(p, 2, &tm->tm_mon) ||
        !skip(p, "-") || !digits(p, 2, &tm->tm_mday))
        return false;
    tm->tm_year -= 1900;
    tm->tm_mon -= 1;
    return tm->tm_year >= 70 && tm->tm_mon >= 0 && tm->tm_mon < 12 && tm->tm_mday >= 1 &&
           tm->tm_mday <= 31;
}

/* "03:57"; *ret_seconds: ":05" followed. */
static bool parse_clock(const char **p, struct tm *tm, bool *ret_seconds)
{
    if (!digits(p, 2, &tm->tm_hour) || !skip(p, ":") || !digits(p, 2, &tm->tm_min))
        return false;
    *ret_seconds = skip(p, ":");
    if (*ret_seconds && !digits(p, 2, &tm->tm_sec))
        return false;
    return tm->tm_hour < 24 && tm->tm_min < 60 && tm->tm_sec <= 60;
}

static int parse_fraction(const char **p)
{
    int ms = 0, scale = 100;

    for (; **p >= '0' && **p <= '9'; (*p)++, scale /= 10)
        ms += (**p - '0') * scale;
    return ms;
}

/* "Z", "+01:00"; minutes. */
static bool parse_zone(const char **p, int *ret)
{
    int sign = **p == '-' ? -1 : 1, h, m;

    *ret = 0;
    if (skip(p, "Zz"))
        return true;
    if (!skip(p, "+-") || !digits(p, 2, &h) || !skip(p, ":") || !digits(p, 2, &m) || h > 23 ||
        m > 59)
        return false;
    *ret = sign * (60 * h + m);
    return true;
}

bool set_instant_parse(const char *text, int64_t *ret)
{
    struct tm tm = { 0 };
    bool seconds;
    int ms = 0, zone;

    if (!parse_date(&text, &tm) || !skip(&text, "Tt ") || !parse_clock(&text, &tm, &seconds) ||
        !seconds)
        return false;
    if (skip(&text, "."))
        ms = parse_fraction(&text);
    if (!parse_zone(&text, &zone) || *text)
        return false;
    *ret = ((int64_t)timegm(&tm) - 60 * (int64_t)zone) * 1000 + ms;
    return true;
}

bool set_instant_of_person(const char *text, int64_t *ret)
{
    struct tm tm = { .tm_isdst = -1 };
    bool clock, seconds = false;

    if (set_instant_parse(text, ret))
        return true;
    if (!parse_date(&text, &tm))
        return false;
    clock = skip(&text, "Tt ");
    if ((clock && !parse_clock(&text, &tm, &seconds)) || *text)
        return false;
    *ret = (int64_t)mktime(&tm) * 1000 + (seconds ? 1000 : clock ? 60 * 1000 : MS_PER_DAY) - 1;
    return true;
}
