/* SPDX-License-Identifier: Apache-2.0
 *
 * fault: rules, counters, hanging. What it does is told in fault.h.
 */
#include "drivers/fault.h"
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/drivers.h"
#include "drivers/fault_log.h"
#include "loop/co_sync.h"

struct rule {
    struct list link;
    struct fault_rule what;
    uint64_t seen;           /* operations that it looked at and matched */
};

struct fault_state {
    struct list rules;       /* struct rule; changes whenever something suspends */
    uint64_t counts[FAULT_ANY];
    uint64_t applied;
    bool cut;

    unsigned hung;
    uint64_t releases, cancels;   /* how often: whoever waits sees that it changed */
    struct waitq waiting;

    struct fault_log *log;
    uint64_t next_id;
};

static inline struct node *child(const struct node *n)
{
    return edge_node(n->file);
}

/* ---- rules ------------------------------------------------------------------------ */

/* What all rules together have for one operation. */
struct effect {
    uint64_t delay_ns;
    bool hang, cut;
    int error;
};

static bool matches(const struct fault_rule *r, enum fault_op op, uint64_t off, uint64_t len)
{
    if (r->op != FAULT_ANY && r->op != op)
        return false;
    if (!r->length || op == FAULT_FLUSH || op == FAULT_RESIZE)
        return !r->length;
    return off < r->offset + r->length && r->offset < off + len;
}

static struct effect apply_rules(struct fault_state *s, enum fault_op op, uint64_t off,
                                 uint64_t len)
{
    struct effect e = { 0 };
    struct rule *r, *next;
    bool any = false;

    list_for_each_safe(r, next, &s->rules, link) {
        if (!matches(&r->what, op, off, len))
            continue;
        r->seen++;
        if (r->what.nth && r->seen != r->what.nth)
            continue;
        any = true;
        e.delay_ns += r->what.delay_ns;
        e.hang |= r->what.hang;
        e.cut |= r->what.cut;
        if (!e.error)
            e.error = r->what.error;
        if (r->what.once) {
            list_del(&r->link);
            free(r);
        }
    }
    s->applied += any;
    return e;
}

static int co_hang(struct fault_state *s, bool forever, uint64_t ns)
{
    uint64_t cancels = s->cancels, releases = s->releases;
    uint64_t until = forever ? DEADLINE_NEVER : loop_now() + ns;

    s->hung += forever;
    while (s->cancels == cancels && !(forever && s->releases != releases)) {
        if (!co_waitq_wait_until(&s->waiting, until))
            break;
    }
    s->hung -= forever;
    return s->cancels == cancels ? 0 : -ECANCELED;
}

/* What comes before the operation itself: 0 if it is to be done. */
static int co_suffer(struct node *n, enum fault_op op, uint64_t off, uint64_t len)
{
    struct fault_state *s = n->state;
    int r = 0;

    s->counts[op]++;

    struct effect e = apply_rules(s, op, off, len);

    if (e.delay_ns)
        r = co_hang(s, false, e.delay_ns);
    if (r == 0 && e.hang)
        r = co_hang(s, true, 0);
    if (r < 0)
        return r;
    s->cut |= e.cut;
    return s->cut ? -EIO : e.error;
}

/* ---- operations --------------------------------------------------------------------- */

static int co_perform(struct node *n, const struct fault_log_entry *e, struct err *err)
{
    struct node *c = child(n);
    struct err why = ERR_INIT;

    switch (e->op) {
    case FAULT_WRITE:
        return co_node_pwritev(c, e->off, e->len, e->iov, e->niov, e->flags);
    case FAULT_WRITE_ZEROES:
        return co_node_write_zeroes(c, e->off, e->len, e->flags);
    case FAULT_DISCARD:
        return co_node_discard(c, e->off, e->len);
    case FAULT_FLUSH:
        return co_node_flush(c);
    case FAULT_RESIZE:
        if (co_node_resize(c, e->off, &why))
            return 0;
        if (err)
            *err = why;
        return why.code;
    default:
        return -EINVAL;
    }
}

/* An operation that changes something: suffer, record, do, record. */
static int co_change(struct node *n, struct fault_log_entry *e, struct err *err)
{
    struct fault_state *s = n->state;
    int r = co_suffer(n, e->op, e->off, e->len);

    if (r < 0)
        return r;
    e->id = s->next_id++;
    if (s->log) {
        r = co_fault_log_begin(s->log, e);
        if (r < 0)
            return r;
    }
    e->result = co_perform(n, e, err);
    /* Nobody is told any more how it ended. */
    if (s->cut)
        return -EIO;
    if (s->log) {
        r = co_fault_log_end(s->log, e);
        if (r < 0)
            return r;
    }
    return e->result;
}

static int co_fault_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                           int niov, unsigned flags)
{
    int r = co_suffer(n, FAULT_READ, off, len);

    return r < 0 ? r : co_node_preadv(child(n), off, len, iov, niov, flags);
}

static int co_fault_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                            int niov, unsigned flags)
{
    struct fault_log_entry e = {
        .op = FAULT_WRITE, .off = off, .len = len, .flags = flags, .iov = iov, .niov = niov,
    };

    return co_change(n, &e, NULL);
}

static int co_fault_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct fault_log_entry e = {
        .op = FAULT_WRITE_ZEROES, .off = off, .len = len, .flags = flags,
    };

    return co_change(n, &e, NULL);
}

static int co_fault_discard(struct node *n, uint64_t off, uint64_t len)
{
    struct fault_log_entry e = { .op = FAULT_DISCARD, .off = off, .len = len };

    return co_change(n, &e, NULL);
}

static int co_fault_flush(struct node *n)
{
    struct fault_log_entry e = { .op = FAULT_FLUSH };

    return co_change(n, &e, NULL);
}

static int co_fault_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    int r = co_suffer(n, FAULT_STATUS, off, len);

    return r < 0 ? r : co_node_status(child(n), off, len, ret);
}

static bool co_fault_resize(struct node *n, uint64_t size, struct err *err)
{
    struct fault_log_entry e = { .op = FAULT_RESIZE, .off = size };
    struct err why = ERR_INIT;
    int r = co_change(n, &e, &why);

    n->size = node_size(child(n));
    if (r == 0)
        return true;
    if (!why.code)
        err_errno(&why, r, "Node '%s': resizing failed on request", n->name);
    if (err)
        *err = why;
    return false;
}

static void fault_get_info(struct node *n, struct node_info *ret)
{
    node_get_info(child(n), ret);
}

/* ---- from inside --------------------------------------------------------------------- */

static struct fault_state *state_of(const struct node *n)
{
    assert(n->drv == &fault_driver && n->loop == loop_current());
    return n->state;
}

void fault_add_rule(struct node *n, const struct fault_rule *rule)
{
    struct fault_state *s = state_of(n);
    struct rule *r = xnew(struct rule);

    r->what = *rule;
    list_push_tail(&s->rules, &r->link);
}

void fault_clear_rules(struct node *n)
{
    struct fault_state *s = state_of(n);
    struct rule *r;

    while ((r = list_pop_head(&s->rules, struct rule, link)))
        free(r);
}

uint64_t fault_count(const struct node *n, enum fault_op op)
{
    const struct fault_state *s = state_of(n);
    uint64_t sum = 0;

    if (op != FAULT_ANY)
        return s->counts[op];
    for (size_t i = 0; i < ARRAY_SIZE(s->counts); i++)
        sum += s->counts[i];
    return sum;
}

uint64_t fault_applied(const struct node *n)
{
    return state_of(n)->applied;
}

unsigned fault_hung(const struct node *n)
{
    return state_of(n)->hung;
}

void fault_release(struct node *n)
{
    struct fault_state *s = state_of(n);

    s->releases++;
    waitq_wake_all(&s->waiting);
}

void fault_set_cut(struct node *n, bool cut)
{
    state_of(n)->cut = cut;
}

bool fault_is_cut(const struct node *n)
{
    return state_of(n)->cut;
}

static void fault_cancel_in_flight(struct node *n)
{
    struct fault_state *s = n->state;

    s->cancels++;
    waitq_wake_all(&s->waiting);
    node_cancel_in_flight(child(n));
}

/* ---- options and opening ---------------------------------------------------------------- */

struct rule_options {
    int op;
    bool has_nth;
    uint64_t nth;
    bool has_offset;
    uint64_t offset;
    bool has_length;
    uint64_t length;
    bool has_error;
    char *error;
    bool has_delay_ns;
    uint64_t delay_ns;
    bool has_hang, hang;
    bool has_cut, cut;
    bool has_once, once;
};

struct fault_options {
    struct schema_alt file;
    bool has_rules;
    struct schema_array rules;
    bool has_record;
    char *record;
};

static const char *const op_names[] = {
    [FAULT_READ] = "read",
    [FAULT_WRITE] = "write",
    [FAULT_WRITE_ZEROES] = "write-zeroes",
    [FAULT_DISCARD] = "discard",
    [FAULT_FLUSH] = "flush",
    [FAULT_STATUS] = "status",
    [FAULT_RESIZE] = "resize",
    [FAULT_ANY] = "any",
    NULL,
};
static const struct schema_type op_type = {
    .name = "FaultOperation",
    .kind = SCHEMA_ENUM,
    .size = sizeof(int),
    .values = op_names,
};

static const struct schema_member rule_members[] = {
    SCHEMA_REQUIRED(struct rule_options, op, "op", &op_type, "the operation it is about"),
    SCHEMA_OPTIONAL(struct rule_options, nth, "nth", &schema_size,
                    "only the so-manieth of them, from 1; default 0: each"),
    SCHEMA_OPTIONAL(struct rule_options, offset, "offset", &schema_size,
                    "with length: only those that touch this range"),
    SCHEMA_OPTIONAL(struct rule_options, length, "length", &schema_size,
                    "bytes; default: anywhere"),
    SCHEMA_OPTIONAL(struct rule_options, error, "errno", &schema_str,
                    "how it fails, as \"ENOSPC\" or \"28\"; default EIO if the rule has nothing "
                    "else"),
    SCHEMA_OPTIONAL(struct rule_options, delay_ns, "delay-ns", &schema_size,
                    "it waits before it is done"),
    SCHEMA_OPTIONAL(struct rule_options, hang, "hang", &schema_bool,
                    "it waits until it is cancelled"),
    SCHEMA_OPTIONAL(struct rule_options, cut, "cut", &schema_bool,
                    "it and everything after it fails, as if the power were cut"),
    SCHEMA_OPTIONAL(struct rule_options, once, "once", &schema_bool,
                    "the rule is gone once it has applied"),
    SCHEMA_END,
};
static const struct schema_type rule_type = {
    .name = "FaultRule",
    .kind = SCHEMA_STRUCT,
    .size = sizeof(struct rule_options),
    .members = rule_members,
};
static const struct schema_type rules_type = {
    .name = "FaultRuleList",
    .kind = SCHEMA_ARRAY,
    .size = sizeof(struct schema_array),
    .element = &rule_type,
};

static const struct schema_member fault_members[] = {
    SCHEMA_REQUIRED(struct fault_options, file, "file", &blockdev_ref_type, "the node below"),
    SCHEMA_OPTIONAL(struct fault_options, rules, "rules", &rules_type, "what goes wrong when"),
    SCHEMA_OPTIONAL(struct fault_options, record, "record", &schema_str,
                    "file to record what is changed in, with its data"),
    SCHEMA_END,
};
static const struct schema_type fault_options_type = {
    .name = "BlockdevOptionsFault",
    .kind = SCHEMA_STRUCT,
    .doc = "makes storage misbehave, for tests",
    .size = sizeof(struct fault_options),
    .members = fault_members,
};

#define ERRNO_MAX 4095       /* the kernel's MAX_ERRNO */

/* "ENOSPC" or "28" to -28; 0 if it is neither. */
static int parse_errno(const char *text)
{
    char *end;
    long number = strtol(text, &end, 10);

    if (end != text && !*end)
        return number > 0 && number <= ERRNO_MAX ? (int)-number : 0;
    if (strcmp(text, "EOPNOTSUPP") == 0)
        return -EOPNOTSUPP;
    for (int e = 1; e <= ERRNO_MAX; e++) {
        const char *name = strerrorname_np(e);

        if (name && strcmp(name, text) == 0)
            return -e;
    }
    return 0;
}

static bool add_rule_option(struct node *n, const struct rule_options *o, struct err *err)
{
    struct fault_rule rule = {
        .op = (enum fault_op)o->op,
        .nth = o->nth,
        .offset = o->offset,
        .length = o->length,
        .delay_ns = o->delay_ns,
        .hang = o->hang,
        .cut = o->cut,
        .once = o->once,
    };

    if (o->has_offset != o->has_length)
        return err_set(err, -EINVAL, "A fault rule needs 'offset' and 'length' together");
    if (o->has_length && (!o->length || o->offset > INT64_MAX || o->length > INT64_MAX))
        return err_set(err, -EINVAL, "The range of a fault rule is empty or too large");
    if (o->has_error)
        rule.error = parse_errno(o->error);
    else if (!o->has_delay_ns && !o->hang && !o->cut)
        rule.error = -EIO;
    if (o->has_error && !rule.error)
        return err_set(err, -EINVAL, "'%s' is not the name or number of an error", o->error);
    fault_add_rule(n, &rule);
    return true;
}

static bool add_rule_options(struct node *n, const struct schema_array *rules, struct err *err)
{
    const struct rule_options *o = rules->items;

    for (size_t i = 0; i < rules->n; i++) {
        if (!add_rule_option(n, &o[i], err))
            return false;
    }
    return true;
}

static bool co_fault_open(struct node *n, const void *opts, struct err *err)
{
    const struct fault_options *o = opts;
    struct fault_state *s = n->state;
    unsigned perms = EDGE_READ | (n->read_only ? 0 : EDGE_WRITE | EDGE_RESIZE);

    list_init(&s->rules);
    waitq_init(&s->waiting);
    if (!co_node_open_child(n, "file", &o->file, perms, EDGE_READ, err))
        return false;
    if (!add_rule_options(n, &o->rules, err)) {
        fault_clear_rules(n);
        return false;
    }
    n->size = node_size(child(n));
    if (o->has_record) {
        s->log = co_fault_log_open(o->record, n->size, err);
        if (!s->log) {
            fault_clear_rules(n);
            return false;
        }
    }
    n->limits.request_align = 1;
    n->limits.write_flags = REQ_FUA;
    n->limits.zero_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    n->zero_init = child(n)->zero_init;
    return true;
}

static void co_fault_close(struct node *n)
{
    struct fault_state *s = n->state;

    fault_clear_rules(n);
    co_fault_log_close(s->log);
}

const struct driver fault_driver = {
    .name = "fault",
    .doc = "makes storage misbehave, for tests",
    .state_size = sizeof(struct fault_state),
    .options = &fault_options_type,
    .is_filter = true,
    .co_open = co_fault_open,
    .co_close = co_fault_close,
    .co_preadv = co_fault_preadv,
    .co_pwritev = co_fault_pwritev,
    .co_write_zeroes = co_fault_write_zeroes,
    .co_discard = co_fault_discard,
    .co_flush = co_fault_flush,
    .co_status = co_fault_status,
    .co_resize = co_fault_resize,
    .get_info = fault_get_info,
    .cancel_in_flight = fault_cancel_in_flight,
};
