/* SPDX-License-Identifier: Apache-2.0
 *
 * An intrusive doubly linked ring. The head is a node of its own; an entry that
 * is on no list links to itself, so list_del is safe to repeat.
 */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include "base/base.h"

struct list {
    struct list *next, *prev;
};

#define LIST_INIT(name) { &(name), &(name) }

static inline void list_init(struct list *l)
{
    l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
    return l->next == l;
}

static inline void list_insert_after(struct list *where, struct list *e)
{
    e->next = where->next;
    e->prev = where;
    where->next->prev = e;
    where->next = e;
}

static inline void list_push_head(struct list *head, struct list *e)
{
    list_insert_after(head, e);
}

static inline void list_push_tail(struct list *head, struct list *e)
{
    list_insert_after(head->prev, e);
}

/* Take @e off whatever list it is on; harmless if it is on none. */
static inline void list_del(struct list *e)
{
    e->prev->next = e->next;
    e->next->prev = e->prev;
    list_init(e);
}

/* Move all of @from to the tail of @to; @from is empty afterwards. */
static inline void list_splice_tail(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#define list_entry(ptr, type, member) container_of(ptr, type, member)
#define list_first(head, type, member) \
    (list_empty(head) ? NULL : list_entry((head)->next, type, member))
#define list_pop_head(head, type, member) \
    ({ \
        type *_e = list_first(head, type, member); \
        if (_e) \
            list_del(&_e->member); \
        _e; \
    })
#define list_for_each(pos, head, member) \
    for (pos = list_entry((head)->next, __typeof__(*pos), member); &pos->member != (head); \
         pos = list_entry(pos->member.next, __typeof__(*pos), member))
/* The body may delete @pos, and nothing else. */
#define list_for_each_safe(pos, tmp, head, member) \
    for (pos = list_entry((head)->next, __typeof__(*pos), member), \
        tmp = list_entry(pos->member.next, __typeof__(*pos), member); \
         &pos->member != (head); \
         pos = tmp, tmp = list_entry(tmp->member.next, __typeof__(*tmp), member))

#endif
