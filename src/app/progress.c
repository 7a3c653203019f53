/* SPDX-License-Identifier: Apache-2.0
 *
 * Progress: the rate is that of the last seconds, not of the whole run, so that
 * the time left follows a speed limit that was changed or a pause that ended.
 */
#include "app/progress.h"
#include "app/human.h"
#include "base/mem.h"
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Redrawing faster than this is only flicker; a log wants few lines. */
#define BAR_NS (250 * NSEC_PER_MSEC)
#define PLAIN_NS (5 * NSEC_PER_SEC)
#define JSON_NS (500 * NSEC_PER_MSEC)
#define NONE_NS (1 * NSEC_PER_SEC)
/* The rate is over what was done in this time. */
#define WINDOW_NS (8 * NSEC_PER_SEC)

#define COLUMNS_DEFAULT 80
#define BAR_CELLS_MIN 8
#define BAR_CELLS_MAX 40

const char *const progress_styles[] = { "auto", "bar", "plain", "json", "none", NULL };

static uint64_t interval(const struct progress *p)
{
    switch (p->style) {
    case PROGRESS_BAR:
        return BAR_NS;
    case PROGRESS_PLAIN:
        return PLAIN_NS;
    case PROGRESS_JSON:
        return JSON_NS;
    default:
        return NONE_NS;
    }
}

void progress_init(struct progress *p, enum progress_style style, const char *what,
                   bool open_ended, uint64_t now)
{
    *p = (struct progress){ .style = style, .what = what, .open_ended = open_ended };
    if (style == PROGRESS_AUTO)
        p->style = isatty(STDOUT_FILENO) ? PROGRESS_BAR : PROGRESS_PLAIN;
    p->next = now + interval(p);
    (void)progress_rate(p, now, 0);
}

bool progress_for_people(const struct progress *p)
{
    return p->style == PROGRESS_BAR || p->style == PROGRESS_PLAIN;
}

uint64_t progress_rate(struct progress *p, uint64_t now, uint64_t bytes)
{
    const struct progress_sample *oldest = NULL;

    p->newest = (p->newest + 1) % PROGRESS_SAMPLES;
    p->samples[p->newest] = (struct progress_sample){ .at = now, .bytes = bytes };
    p->n = MIN(p->n + 1, (unsigned)PROGRESS_SAMPLES);
    for (unsigned i = 1; i < p->n; i++) {
        const struct progress_sample *s =
            &p->samples[(p->newest + PROGRESS_SAMPLES - i) % PROGRESS_SAMPLES];

        /* At least one, however long ago it was. */
        if (oldest && now - s->at > WINDOW_NS)
            break;
        oldest = s;
    }
    if (!oldest || now <= oldest->at || bytes <= oldest->bytes)
        return 0;
    return (uint64_t)((double)(bytes - oldest->bytes) * NSEC_PER_SEC / (double)(now - oldest->at));
}

bool progress_time_left(const struct progress_state *s, uint64_t rate, uint64_t *ret)
{
    if (!rate || s->current > s->total)
        return false;
    *ret = div_round_up(s->total - s->current, rate);
    return true;
}

static unsigned percent(const struct progress_state *s)
{
    if (!s->total)
        return 0;
    return s->current >= s->total ? 100 : (unsigned)((double)s->current / (double)s->total * 100);
}

/* "1.2 GiB of 3 GiB  512 MiB/s  3 s left" */
static void add_figures(struct strbuf *sb, const struct progress *p,
                        const struct progress_state *s, uint64_t rate)
{
    char current[HUMAN_TEXT], total[HUMAN_TEXT], speed[HUMAN_TEXT], left[HUMAN_TEXT];
    uint64_t seconds;

    if (p->open_ended) {
        strbuf_addf(sb, "%s of old data kept", human_size(s->current, current));
    } else {
        strbuf_addf(sb, "%s of %s  %s/s", human_size(s->current, current),
                    human_size(s->total, total), human_size(rate, speed));
        if (!s->note && progress_time_left(s, rate, &seconds))
            strbuf_addf(sb, "  %s left", human_duration(seconds, left));
    }
    if (s->note)
        strbuf_addf(sb, "  %s", s->note);
}

static void add_bar(struct strbuf *sb, size_t cells, unsigned percents)
{
    size_t full = cells * percents / 100;

    strbuf_addc(sb, '[');
    for (size_t i = 0; i < cells; i++)
        strbuf_addc(sb, i < full ? '=' : i == full ? '>' : ' ');
    strbuf_add(sb, "]  ");
}

/* Where columns are few, the bar goes first, then the names, the figures last. */
void progress_draw(struct strbuf *sb, const struct progress *p, const struct progress_state *s,
                   uint64_t rate, unsigned columns)
{
    CLEANUP_STRBUF struct strbuf figures = STRBUF_INIT;
    size_t start = sb->len, what = strlen(p->what) + 2, room;

    if (!p->open_ended)
        strbuf_addf(&figures, "%3u%% ", percent(s));

    size_t bar_at = figures.len;

    add_figures(&figures, p, s, rate);
    room = columns > figures.len ? columns - figures.len : 0;
    if (room >= what) {
        strbuf_addf(sb, "%s  ", p->what);
        room -= what;
    }
    strbuf_addn(sb, strbuf_text(&figures), bar_at);
    if (!p->open_ended && room >= BAR_CELLS_MIN + strlen("[]  "))
        add_bar(sb, MIN(room - strlen("[]  "), (size_t)BAR_CELLS_MAX), percent(s));
    strbuf_add(sb, strbuf_text(&figures) + bar_at);
    if (sb->len - start > columns)
        strbuf_cut(sb, start + columns);
}

static unsigned terminal_columns(void)
{
    struct winsize w;

    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) < 0 || !w.ws_col)
        return COLUMNS_DEFAULT;
    return w.ws_col;
}

static void put(const char *text)
{
    fputs(text, stdout);
    fflush(stdout);
}

static void update_bar(struct progress *p, const struct progress_state *s, uint64_t rate)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    /* The last column is left free: some terminals wrap when it is written. */
    strbuf_addc(&sb, '\r');
    progress_draw(&sb, p, s, rate, terminal_columns() - 1);
    strbuf_add(&sb, "\033[K");
    put(strbuf_text(&sb));
    p->drawn = true;
}

static void update_plain(struct progress *p, const struct progress_state *s, uint64_t rate)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    strbuf_addf(&sb, "%s: ", p->what);
    if (!p->open_ended)
        strbuf_addf(&sb, "%u%%, ", percent(s));
    add_figures(&sb, p, s, rate);
    strbuf_addc(&sb, '\n');
    put(strbuf_text(&sb));
}

static void update_json(struct progress *p, const struct progress_state *s, uint64_t rate)
{
    json_t *e = json_pack("{s:s, s:I, s:I, s:I}", "event", "progress", "current",
                          (json_int_t)s->current, "total", (json_int_t)s->total, "rate",
                          (json_int_t)rate);
    uint64_t left;

    json_object_set_new(e, "eta", progress_time_left(s, rate, &left)
                        ? json_integer((json_int_t)left) : json_null());
    if (s->note)
        json_object_set_new(e, "note", json_string(s->note));
    if (s->jobs)
        json_object_set(e, "jobs", s->jobs);
    progress_event(p, e);
}

void progress_update(struct progress *p, const struct progress_state *s, uint64_t now)
{
    uint64_t rate = progress_rate(p, now, s->current);

    switch (p->style) {
    case PROGRESS_BAR:
        update_bar(p, s, rate);
        break;
    case PROGRESS_PLAIN:
        update_plain(p, s, rate);
        break;
    case PROGRESS_JSON:
        update_json(p, s, rate);
        break;
    default:
        break;
    }
    p->next = now + interval(p);
}

void progress_event(struct progress *p, json_t *event)
{
    if (p->style == PROGRESS_JSON) {
        CLEANUP(free) char *text = json_dumps(event, JSON_COMPACT);

        printf("%s\n", text);
        fflush(stdout);
    }
    json_decref(event);
}

void progress_clear(struct progress *p)
{
    if (p->drawn)
        put("\r\033[K");
    p->drawn = false;
}
