/* SPDX-License-Identifier: Apache-2.0
 *
 * The log is standard error: who runs the daemon decides where that goes.
 */
#include "base/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static enum log_level max_level = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
    max_level = level;
}

bool log_wanted(enum log_level level)
{
    return level <= max_level;
}

void log_line(enum log_level level, const char *fmt, ...)
{
    static const char *const prefix[] = {
        [LOG_LEVEL_ERROR] = "stillpoint: error: ",
        [LOG_LEVEL_WARN] = "stillpoint: warning: ",
        [LOG_LEVEL_INFO] = "stillpoint: ",
        [LOG_LEVEL_DEBUG] = "stillpoint: debug: ",
    };
    int saved = errno;
    char line[2048];
    va_list ap;

    if (!log_wanted(level))
        return;
    int start = snprintf(line, sizeof(line), "%s", prefix[level]);
    int room = (int)sizeof(line) - start;

    va_start(ap, fmt);
    int n = vsnprintf(line + start, room, fmt, ap);
    va_end(ap);
    n = start + MIN(MAX(n, 0), room - 1);

    /* A text may quote a peer's bytes; they must not forge a second line. */
    for (int i = start; i < n; i++) {
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    }
    line[n++] = '\n';
    ssize_t nobody_to_tell UNUSED = write(STDERR_FILENO, line, n);
    errno = saved;
}
