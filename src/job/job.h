/* SPDX-License-Identifier: Apache-2.0
 *
 * A job is a long-running operation that people watch and steer: its state,
 * what may be done to it in which state, its progress, its error. The states,
 * verbs, order of events and error texts are QEMU's (job.c, qapi/job.json),
 * so that tools made for QEMU drive it unchanged.
 *
 *      undefined -> created -> running <-> paused
 *                      |          |
 *                      |          +--------> ready <-> standby
 *                      |          |            |
 *                      |          v            |
 *                      |       waiting <-------+       success: waiting, pending,
 *                      |          |            |       concluded
 *                      |          v            |
 *                      |       pending         |
 *                      |       |     |         |       failure and cancel: from any of
 *                      +-------|-> aborting <--+       these to aborting, concluded
 *                              |     |
 *                              v     v
 *                             concluded -> null        null: forgotten
 *
 * A job of a group (job_txn.h) waits in waiting and pending until all others of it
 * are as far.
 *
 * A job lives on one loop, that of its disk. Everything here is for that loop
 * unless it says otherwise; the id and the loop never change. References are
 * counted atomically so that a job found by id on another loop stays.
 */
#ifndef JOB_JOB_H
#define JOB_JOB_H

#include "base/err.h"
#include "base/histogram.h"
#include "loop/co_sync.h"

#define JOB_ID_MAX 256     /* with the terminator */

struct job;

enum job_status {          /* in the order of QAPI's JobStatus */
    JOB_UNDEFINED,
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,
    JOB_STANDBY,
    JOB_WAITING,
    JOB_PENDING,
    JOB_ABORTING,
    JOB_CONCLUDED,
    JOB_NULL,
    JOB_STATUS_MAX,
};

enum job_verb {
    JOB_CANCEL,
    JOB_PAUSE,
    JOB_RESUME,
    JOB_SET_SPEED,
    JOB_COMPLETE,
    JOB_FINALIZE,
    JOB_DISMISS,
    JOB_CHANGE,
    JOB_VERB_MAX,
};

enum job_iostatus { JOB_IO_OK, JOB_IO_FAILED, JOB_IO_NOSPACE };
enum job_op { JOB_OP_READ, JOB_OP_WRITE };
enum job_action { JOB_ACTION_IGNORE, JOB_ACTION_REPORT, JOB_ACTION_STOP };

/* QAPI's names: "created", "set-speed", "ok"/"failed"/"nospace", "read", "ignore". Any thread. */
const char *job_status_name(enum job_status s);
const char *job_verb_name(enum job_verb v);
const char *job_iostatus_name(enum job_iostatus s);
const char *job_op_name(enum job_op op);
const char *job_action_name(enum job_action a);

/* What somebody outside hears; err is -errno. Called on the job's loop, in the order in which
 * things happen; must not suspend. job_query may be called inside. Each may be
 * NULL. */
struct job_events {
    void (*status_change)(void *arg, struct job *job, enum job_status status);
    void (*error)(void *arg, struct job *job, enum job_op op, enum job_action action, int err);
    void (*ready)(void *arg, struct job *job);
    void (*pending)(void *arg, struct job *job);     /* waits for job_finalize */
    void (*completed)(void *arg, struct job *job);   /* job_info.error tells how */
    void (*cancelled)(void *arg, struct job *job);
    /* The work is over for good: ret 0, or -errno and why. After it nothing of
     * the target is open (unless the target hangs), before completed/cancelled.
     * For the job's creator to finish or tidy up. */
    void (*finished)(void *arg, struct job *job, int ret, const struct err *err);
};

/* What a job costs those who use its source. */
struct job_guest {
    struct histogram_summary added;    /* ns that each write became longer by */
    double factor;                     /* the latency budget; 0: none */
    double slowdown;                   /* what requests take now over what they take alone; 0:
                                        * not known, or there are none */
    bool binds;                        /* the budget holds the copy back now */
};

struct job_info {
    char id[JOB_ID_MAX];
    const char *type;             /* QAPI's JobType: "backup" */
    enum job_status status;
    uint64_t current, total;      /* progress; bytes for block jobs. total is an estimate */
    uint64_t speed;               /* bytes a second; 0: not limited */
    bool busy;                    /* running, not waiting for a rate limit or event */
    bool paused;                  /* a pause is asked for, whether or not it was reached yet */
    bool ready;
    bool cancelling;              /* cancelled, not concluded yet */
    bool auto_finalize, auto_dismiss;
    enum job_iostatus iostatus;
    bool has_guest;
    struct job_guest guest;
    int ret;                      /* when concluded or aborting: 0 or -errno */
    char error[1024];             /* why, when ret < 0 */
};

/* ---- for those who watch and steer ----------------------------------------- */

/* A new reference, or NULL. Any thread. */
struct job *job_find(const char *id);
/* Call @fn for every job there is, oldest first, with a reference held and no
 * lock. Any thread; fn may suspend if the caller may. */
void job_for_each(void (*fn)(struct job *job, void *arg), void *arg);

struct job *job_ref(struct job *job);    /* any thread */
void job_unref(struct job *job);         /* any thread; takes NULL */
DEFINE_CLEANUP(struct job *, job_unref);

const char *job_id(const struct job *job);           /* any thread */
struct loop *job_loop(const struct job *job);        /* any thread */
void job_query(struct job *job, struct job_info *ret);

/* The verbs. Each fails with QEMU's text ("Job 'x' in state 'y' cannot accept
 * command verb 'z'") when the state does not allow it. None suspends: what they
 * ask for happens soon, and is told by events. */
MUST_CHECK bool job_user_pause(struct job *job, struct err *err);
MUST_CHECK bool job_user_resume(struct job *job, struct err *err);
MUST_CHECK bool job_set_speed(struct job *job, uint64_t speed, struct err *err);
/* The latency budget of a job that has one. */
MUST_CHECK bool job_set_guest_latency(struct job *job, double factor, struct err *err);
/* Without @force a job that can still end well may first finish what it has
 * begun (a backup with sync=none drains what was captured); it is cancelled all
 * the same, unless that fails: then it has failed. Without @force a paused job
 * refuses. Asking again, also with force, is allowed. */
MUST_CHECK bool job_cancel(struct job *job, bool force, struct err *err);
MUST_CHECK bool job_complete(struct job *job, struct err *err);
MUST_CHECK bool job_finalize(struct job *job, struct err *err);
MUST_CHECK bool job_dismiss(struct job *job, struct err *err);

/* Wait until the job is concluded (or forgotten). False at @deadline. */
MUST_CHECK bool co_job_wait_concluded(struct job *job, uint64_t deadline);
/* Cancel all jobs by force and wait until they are concluded; false at @deadline:
 * some may still tell events then. For shutting down. Coroutine on any loop. */
MUST_CHECK bool co_job_cancel_all(uint64_t deadline);

/* ---- for those who implement a job -------------------------------------------- */

struct job_ops {
    const char *type;
    /* The work, in a coroutine of its own. 0, or -errno with @err filled (if it
     * is not, strerror is taken). Returns soon after job_is_cancelled. When it
     * returns nothing of the job is left but memory. */
    int (*co_run)(struct job *job, void *state, struct err *err);
    void (*free)(void *state);                          /* any thread; may be NULL */
    /* How it ended is final: 0 or -errno, and nobody was told yet. Must not suspend. May be
     * NULL. */
    void (*concluded)(void *state, int ret);
    /* What this kind of job has to tell of itself; may be NULL. */
    void (*query)(const void *state, struct job_info *ret);
    /* Optional notes, called before the job is woken. */
    void (*speed_changed)(void *state, uint64_t speed);
    bool (*guest_latency_changed)(void *state, double factor, struct err *err);   /* may refuse */
    /* job_complete and a soft job_cancel are allowed while running, and
     * job_should_complete tells of them. */
    bool drains;
};

struct job_opts {
    const char *id;
    const struct job_ops *ops;
    void *state;                    /* owned by the job on success */
    uint64_t speed;
    bool auto_finalize, auto_dismiss;
    struct job_txn *txn;                 /* it ends together with others (job_txn.h); NULL: alone */
    const struct job_events *events;     /* static; may be NULL */
    void *events_arg;
};

/* Create a job on the calling loop, in state created, registered under its id.
 * NULL: the id is ill-formed or in use. The result is a reference. */
struct job *job_new(const struct job_opts *opts, struct err *err);
/* Tell that it is there, unless that was told: when nothing can go wrong any more,
 * so that a command that fails leaves no trace of a job. */
void job_announce(struct job *job);
/* Announce and run it. Once. */
void job_start(struct job *job);
/* Forget a job that was not started. */
void job_drop(struct job *job);

bool job_is_cancelled(const struct job *job);       /* stop now */
bool job_should_complete(const struct job *job);    /* finish what was begun, then end */
bool job_should_pause(const struct job *job);
/* Pause here if that is asked for: nothing is under way. */
void co_job_pause_point(struct job *job);
/* Sleep until job_kick, a verb, or @deadline. */
void co_job_wait(struct job *job, uint64_t deadline);
void job_kick(struct job *job);
uint64_t job_speed(const struct job *job);
void job_progress(struct job *job, uint64_t current, uint64_t total);
/* An I/O error (-errno) was met: tell it, and for JOB_ACTION_STOP pause the job as
 * if the user had and set its iostatus. Errors that are ignored are told once a
 * second at most. */
void job_io_error(struct job *job, enum job_op op, enum job_action action, int err);

/* Whether @id is fit for a job: a letter, then letters, digits, '-', '.', '_'. Any thread. */
bool job_id_wellformed(const char *id);

#endif
