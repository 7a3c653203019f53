/* SPDX-License-Identifier: Apache-2.0
 *
 * For commands that work on images for a while: how far they are is shown, and Ctrl-C
 * is noticed between two steps, so that what they change can be left whole.
 */
#ifndef APP_WATCH_H
#define APP_WATCH_H

#include "app/interrupt.h"
#include "app/progress.h"

struct watch {
    struct progress progress;
    struct interrupt interrupt;
};

/* The option for it, for a command's table; @style is an int. */
#define CLI_PROGRESS(style) \
    { "progress", 0, CLI_CHOICE, style, NULL, "auto: a bar on a terminal, else plain lines", \
      progress_styles }

/* Before there are other threads. @what is borrowed, for the bar. */
MUST_CHECK bool watch_begin(struct watch *w, int style, const char *what, struct err *err);
/* So far (bytes): true to go on, false after Ctrl-C. */
MUST_CHECK bool watch_step(struct watch *w, uint64_t current, uint64_t total);
/* Whether Ctrl-C was noticed. */
static inline bool watch_cancelled(const struct watch *w)
{
    return w->interrupt.count > 0;
}
/* The bar goes, so that words can stand there. */
void watch_end(struct watch *w);

#endif
