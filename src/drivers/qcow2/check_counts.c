/* SPDX-License-Identifier: Apache-2.0
 *
 * References counted, see check_counts.h: pages by number in a hash with open
 * addressing, each of them one value for all, bytes, or 64-bit words.
 */
#include "drivers/qcow2/check_counts.h"
#include "base/base.h"

#define PAGE QCOW2_COUNTS_PAGE
#define MIN_SLOTS 64U
#define MALLOC_COST 16U          /* what an allocation costs beside its bytes */

enum form { EVEN, BYTES, WORDS };

struct page {
    uint64_t key;                /* the page's number + 1; 0: an empty slot */
    enum form form;
    union {
        uint64_t even;           /* every count */
        uint8_t *bytes;
        uint64_t *words;
    };
};

struct qcow2_counts {
    uint64_t from, end;          /* the window, clusters */
    struct page *slots;
    size_t n_slots, n;           /* at most half of them are taken */
    size_t used, most;           /* bytes */
    size_t last;                 /* the slot that was asked for last */
};

/* ---- the hash ------------------------------------------------------------ */

static size_t home_of(const struct qcow2_counts *c, uint64_t key)
{
    return (key * 0x9e3779b97f4a7c15ULL >> 20) & (c->n_slots - 1);
}

static size_t find(const struct qcow2_counts *c, uint64_t key)
{
    size_t i = home_of(c, key);

    while (c->slots[i].key && c->slots[i].key != key)
        i = (i + 1) & (c->n_slots - 1);
    return i;
}

static size_t body_bytes(enum form form)
{
    return form == EVEN ? 0 : MALLOC_COST + PAGE * (form == BYTES ? 1U : 8U);
}

static void drop_body(struct qcow2_counts *c, struct page *p)
{
    c->used -= body_bytes(p->form);
    if (p->form != EVEN)
        free(p->bytes);
    p->form = EVEN;
}

/* Move all pages to @n slots. */
static int rehash(struct qcow2_counts *c, size_t n)
{
    struct qcow2_counts new = *c;

    new.n_slots = n;
    new.slots = calloc(n, sizeof(*new.slots));
    if (!new.slots)
        return -ENOMEM;
    for (size_t i = 0; i < c->n_slots; i++) {
        if (c->slots[i].key)
            new.slots[find(&new, c->slots[i].key)] = c->slots[i];
    }
    free(c->slots);
    new.used = c->used - c->n_slots * sizeof(*c->slots) + n * sizeof(*c->slots);
    new.last = 0;
    *c = new;
    return 0;
}

struct qcow2_counts *qcow2_counts_new(uint64_t from, size_t bytes)
{
    struct qcow2_counts *c = calloc(1, sizeof(*c));

    assert(from % PAGE == 0);
    if (!c)
        return NULL;
    c->from = from;
    c->end = UINT64_MAX;
    c->most = bytes;
    if (rehash(c, MIN_SLOTS) == 0)
        return c;
    free(c);
    return NULL;
}

void qcow2_counts_free(struct qcow2_counts *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n_slots; i++) {
        if (c->slots[i].key)
            drop_body(c, &c->slots[i]);
    }
    free(c->slots);
    free(c);
}

/* ---- the window ---------------------------------------------------------- */

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

int qcow2_counts_pages(const struct qcow2_counts *c, uint64_t **ret, size_t *ret_n)
{
    size_t n = 0;

    *ret = malloc((c->n + 1) * sizeof(**ret));
    if (!*ret)
        return -ENOMEM;
    for (size_t i = 0; i < c->n_slots; i++) {
        if (c->slots[i].key)
            (*ret)[n++] = c->slots[i].key - 1;
    }
    qsort(*ret, n, sizeof(**ret), compare_u64);
    *ret_n = n;
    return 0;
}

/* Forget the upper half of the pages. */
static int shrink(struct qcow2_counts *c)
{
    struct page *old = c->slots;
    size_t n, n_old = c->n_slots;
    CLEANUP(free) uint64_t *pages = NULL;
    int r = qcow2_counts_pages(c, &pages, &n);

    if (r < 0)
        return r;
    assert(n >= 2);              /* the bound has room for many */
    c->end = pages[n / 2] * PAGE;
    for (size_t i = 0; i < n_old; i++) {
        if (old[i].key && (old[i].key - 1) * PAGE >= c->end) {
            drop_body(c, &old[i]);
            old[i].key = 0;
            c->n--;
        }
    }
    return rehash(c, n_old);     /* closes the gaps */
}

/* The page @number, made if need be. */
static int get_page(struct qcow2_counts *c, uint64_t number, struct page **ret)
{
    size_t i;
    int r = 0;

    if (c->slots[c->last].key == number + 1) {
        *ret = &c->slots[c->last];
        return 0;
    }
    i = find(c, number + 1);
    if (!c->slots[i].key) {
        if ((c->n + 1) * 2 > c->n_slots) {
            r = rehash(c, c->n_slots * 2);
            if (r < 0)
                return r;
            i = find(c, number + 1);
        }
        c->slots[i] = (struct page){ .key = number + 1 };
        c->n++;
    }
    c->last = i;
    *ret = &c->slots[i];
    return 0;
}

/* ---- counting ------------------------------------------------------------ */

static uint64_t plus(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t page_get(const struct page *p, size_t i)
{
    switch (p->form) {
    case EVEN:
        return p->even;
    case BYTES:
        return p->bytes[i];
    default:
        return p->words[i];
    }
}

static int change_form(struct qcow2_counts *c, struct page *p, enum form form)
{
    void *body = malloc(form == BYTES ? PAGE : PAGE * 8);

    if (!body)
        return -ENOMEM;
    for (size_t i = 0; i < PAGE; i++) {
        if (form == BYTES)
            ((uint8_t *)body)[i] = (uint8_t)page_get(p, i);
        else
            ((uint64_t *)body)[i] = page_get(p, i);
    }
    drop_body(c, p);
    p->bytes = body;
    p->form = form;
    c->used += body_bytes(form);
    return 0;
}

static bool fits_bytes(const struct page *p, size_t from, size_t to, uint64_t times)
{
    if (times > UINT8_MAX)
        return false;
    if (p->form == EVEN)
        return p->even <= UINT8_MAX - times;
    for (size_t i = from; i < to; i++) {
        if (p->bytes[i] > UINT8_MAX - times)
            return false;
    }
    return true;
}

/* One value for all again, if it is. */
static void make_even(struct qcow2_counts *c, struct page *p)
{
    if (p->form == BYTES && !memcmp(p->bytes, p->bytes + 1, PAGE - 1)) {
        uint64_t v = p->bytes[0];

        drop_body(c, p);
        p->even = v;
    }
}

static int page_add(struct qcow2_counts *c, struct page *p, size_t from, size_t to, uint64_t times)
{
    int r = 0;

    if (p->form == EVEN && from == 0 && to == PAGE) {
        p->even = plus(p->even, times);
        return 0;
    }
    if (p->form != WORDS && !fits_bytes(p, from, to, times))
        r = change_form(c, p, WORDS);
    else if (p->form == EVEN)
        r = change_form(c, p, BYTES);
    if (r < 0)
        return r;
    for (size_t i = from; i < to; i++) {
        if (p->form == BYTES)
            p->bytes[i] = (uint8_t)(p->bytes[i] + times);
        else
            p->words[i] = plus(p->words[i], times);
    }
    if (to == PAGE)
        make_even(c, p);
    return 0;
}

int qcow2_counts_add(struct qcow2_counts *c, uint64_t first, uint64_t n, uint64_t times)
{
    uint64_t end = plus(first, n);

    for (uint64_t at = MAX(first, c->from); at < MIN(end, c->end); ) {
        uint64_t number = at / PAGE, next = MIN(end, (number + 1) * PAGE);
        struct page *p;
        int r = get_page(c, number, &p);

        if (r == 0)
            r = page_add(c, p, at % PAGE, (next - 1) % PAGE + 1, times);
        if (r == 0 && c->used > c->most)
            r = shrink(c);
        if (r < 0)
            return r;
        at = next;
    }
    return 0;
}

static const struct page *find_page(const struct qcow2_counts *c, uint64_t number)
{
    const struct page *p = &c->slots[c->last];

    if (p->key != number + 1)
        p = &c->slots[find(c, number + 1)];
    return p->key ? p : NULL;
}

uint64_t qcow2_counts_get(const struct qcow2_counts *c, uint64_t cluster)
{
    const struct page *p = find_page(c, cluster / PAGE);

    return p ? page_get(p, cluster % PAGE) : 0;
}

bool qcow2_counts_is_even(const struct qcow2_counts *c, uint64_t page, uint64_t *ret)
{
    const struct page *p = find_page(c, page);

    *ret = p && p->form == EVEN ? p->even : 0;
    return !p || p->form == EVEN;
}

bool qcow2_counts_has_page(const struct qcow2_counts *c, uint64_t page)
{
    return find_page(c, page) != NULL;
}

uint64_t qcow2_counts_from(const struct qcow2_counts *c)
{
    return c->from;
}

uint64_t qcow2_counts_end(const struct qcow2_counts *c)
{
    return c->end;
}
