/* SPDX-License-Identifier: Apache-2.0
 *
 * How far a long job is, told in the way that whoever looks can use: a bar that
 * is redrawn, a line now and then, JSON lines, or nothing. Standard output.
 */
#ifndef APP_PROGRESS_H
#define APP_PROGRESS_H

#include "base/strbuf.h"
#include <jansson.h>

enum progress_style {
    PROGRESS_AUTO,       /* a bar on a terminal, else plain lines */
    PROGRESS_BAR,
    PROGRESS_PLAIN,
    PROGRESS_JSON,
    PROGRESS_NONE,
};
extern const char *const progress_styles[];    /* their names; NULL-terminated */

#define PROGRESS_SAMPLES 32

struct progress_sample {
    uint64_t at;         /* loop_now time */
    uint64_t bytes;
};

struct progress {
    enum progress_style style;       /* never AUTO after progress_init */
    const char *what;                /* "disk -> monday.qcow2" */
    bool open_ended;                 /* there is no total to reach */
    uint64_t next;                   /* when it is time for progress_update */
    bool drawn;                      /* a bar stands on the line */

    struct progress_sample samples[PROGRESS_SAMPLES];   /* a ring, of the last seconds */
    unsigned n, newest;
};

struct progress_state {
    uint64_t current, total;         /* bytes */
    const char *note;                /* "paused", "cancelling"; NULL: none */
    json_t *jobs;                    /* each of several, for programs; borrowed; NULL: one */
};

/* @what is borrowed. @now is loop_now time here and below. */
void progress_init(struct progress *p, enum progress_style style, const char *what,
                   bool open_ended, uint64_t now);
/* Tell the state, if it is one for this style to tell. */
void progress_update(struct progress *p, const struct progress_state *s, uint64_t now);
/* One JSON line, if that is the style. Takes over @event. */
void progress_event(struct progress *p, json_t *event);
/* Take the bar away, so that a sentence can stand there. */
void progress_clear(struct progress *p);
/* Whether people look: sentences for them may be printed. */
bool progress_for_people(const struct progress *p);

/* ---- pure, for the above --------------------------------------------------------- */

/* Note how much was done at @now, and give the rate over the last seconds in bytes
 * a second. */
uint64_t progress_rate(struct progress *p, uint64_t now, uint64_t bytes);

/* The seconds that the rest takes; false when nobody can know. */
bool progress_time_left(const struct progress_state *s, uint64_t rate, uint64_t *ret);

/* The bar as a line of at most @columns characters. */
void progress_draw(struct strbuf *sb, const struct progress *p, const struct progress_state *s,
                   uint64_t rate, unsigned columns);

#endif
