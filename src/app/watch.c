/* SPDX-License-Identifier: Apache-2.0
 *
 * Progress and Ctrl-C of commands without a daemon.
 */
#include "app/watch.h"
#include "loop/loop.h"

bool watch_begin(struct watch *w, int style, const char *what, struct err *err)
{
    progress_init(&w->progress, (enum progress_style)style, what, false, loop_now());
    return interrupt_init(&w->interrupt, err);
}

bool watch_step(struct watch *w, uint64_t current, uint64_t total)
{
    struct progress_state state = { .current = current, .total = total };
    uint64_t now = loop_now();

    interrupt_take(&w->interrupt);
    if (now >= w->progress.next)
        progress_update(&w->progress, &state, now);
    return !watch_cancelled(w);
}

void watch_end(struct watch *w)
{
    progress_clear(&w->progress);
    interrupt_done(&w->interrupt);
}
