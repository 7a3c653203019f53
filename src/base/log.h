/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines on standard error. One call is one line and one write(2), so lines of
 * several threads do not mix. Only export/, qmp/ and app/ log above debug: code
 * below them returns its errors.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "base/base.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Lines above @level are dropped; until it is called, those above
 * LOG_LEVEL_INFO. Set once at start, before there are other threads. */
void log_set_level(enum log_level level);

/* Write "stillpoint: " (an error's and a warning's kind) and the text. Bytes
 * that would break the line are written as '?', a text that is too long is cut.
 * errno is kept. Any thread. */
void log_line(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Whether a line of this level would be written. */
bool log_wanted(enum log_level level);

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
/* The arguments are not evaluated unless the line is wanted. */
#define log_debug(...) \
    do { \
        if (UNLIKELY(log_wanted(LOG_LEVEL_DEBUG))) \
            log_line(LOG_LEVEL_DEBUG, __VA_ARGS__); \
    } while (0)

#endif
