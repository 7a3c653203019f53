/* SPDX-License-Identifier: Apache-2.0
 *
 * Sizes, rates and times as people write and read them.
 */
#include "app/human.h"
#include "base/mem.h"
#include "base/schema.h"
#include <stdio.h>

char *human_size(uint64_t bytes, char buf[static HUMAN_TEXT])
{
    static const char *const units[] = { "", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei" };
    double v = (double)bytes;
    unsigned u = 0;

    /* What would not fit three digits gets the next unit: "0.977 KiB", not "1000 B". */
    while (v >= 999.5 && u + 1 < ARRAY_SIZE(units)) {
        v /= 1024;
        u++;
    }
    snprintf(buf, HUMAN_TEXT, "%.3g %sB", v, units[u]);
    return buf;
}

char *human_duration(uint64_t seconds, char buf[static HUMAN_TEXT])
{
    unsigned long long s = seconds;

    if (s < 60)
        snprintf(buf, HUMAN_TEXT, "%llu s", s);
    else if (s < 3600)
        snprintf(buf, HUMAN_TEXT, "%llu min %02llu s", s / 60, s % 60);
    else
        snprintf(buf, HUMAN_TEXT, "%llu h %02llu min", s / 3600, s % 3600 / 60);
    return buf;
}

char *human_latency(uint64_t ns, char buf[static HUMAN_TEXT])
{
    static const char *const units[] = { "ns", "us", "ms", "s" };
    double v = (double)ns;
    unsigned u = 0;

    while (v >= 999.5 && u + 1 < ARRAY_SIZE(units)) {
        v /= 1000;
        u++;
    }
    snprintf(buf, HUMAN_TEXT, v < 999.5 ? "%.3g %s" : "%.0f %s", v, units[u]);
    return buf;
}

static bool drop_ending(char *text, const char *ending)
{
    size_t n = strlen(text), e = strlen(ending);

    if (n <= e || strcmp(text + n - e, ending) != 0)
        return false;
    text[n - e] = '\0';
    return true;
}

bool human_parse_rate(const char *text, uint64_t *ret, struct err *err)
{
    CLEANUP(free) char *s = xstrdup(text);

    (void)drop_ending(s, "/s");
    if (!drop_ending(s, "iB") && drop_ending(s, "B") && strpbrk(s, "kKMGTPE"))
        return err_set(err, -EINVAL, "'%s': is it meant with units of 1000 or 1024? Write for "
                       "example 50M or 50MiB/s", text);
    return schema_parse_size(s, ret, err);
}

bool human_parse_factor(const char *text, double *ret, struct err *err)
{
    char *end;

    *ret = strcmp(text, "off") == 0 ? 0 : strtod(text, &end);
    if (strcmp(text, "off") == 0 || (end != text && !*end && *ret - *ret == 0))
        return true;
    return err_set(err, -EINVAL, "'%s' is no factor such as 1.5", text);
}
