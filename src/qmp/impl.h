/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of this folder share: the control plane's state, the table of
 * commands, events.
 */
#ifndef QMP_IMPL_H
#define QMP_IMPL_H

#include "base/list.h"
#include "base/schema.h"
#include "base/strbuf.h"
#include "block/dirty.h"
#include "block/graph.h"
#include "job/job.h"
#include "loop/co_sync.h"
#include "qmp/qmp.h"

enum nbd_server_phase { NBD_SERVER_OFF, NBD_SERVER_STARTING, NBD_SERVER_ON, NBD_SERVER_STOPPING };

struct qmp {
    struct loop *loop;
    struct placement *placement;
    char *scratch_dir;           /* NULL: the view's default */
    void (*on_quit)(void *arg);
    void *quit_arg;
    bool shutdown_told;          /* SHUTDOWN was sent */
    bool ending;                 /* no commands any more */
    unsigned running;            /* commands */
    struct waitq idle;

    struct nbd_exports *exports;
    struct nbd_server *nbd_server;
    enum nbd_server_phase nbd_phase;
    json_t *iothreads;           /* an object whose keys are their ids */
    json_t *targets;             /* the same for nodes that blockdev-backup has written to */
    struct co_mutex nodes_lock;  /* held while all nodes are listed and while one is deleted from
                                  * the list, never while a disk is waited for */

    struct list monitors;        /* struct monitor */
    unsigned n_monitors;
    struct waitq monitor_gone;
};

/* ---- commands -------------------------------------------------------------------- */

/* One connection's state of the protocol. */
struct qmp_session {
    bool negotiated;             /* qmp_capabilities was accepted: command mode */
};

/* One command being run. */
struct qmp_call {
    struct qmp *qmp;
    struct qmp_session *session; /* NULL: not given by a monitor */
    const json_t *json;          /* the arguments as they came, an object */
    bool keyval;                 /* with strings for scalars */
};

/* @args is the decoded .args (NULL if it has none); @ret is a zeroed
 * struct of type .ret to be filled (NULL if there is none). */
typedef bool co_qmp_fn(const struct qmp_call *call, const void *args, void *ret,
                       struct err *err);

struct qmp_command {
    const char *name;
    const char *doc;
    const struct schema_type *args, *ret;
    co_qmp_fn *co_run;
};

/* Tables that end with an entry without name, one for each area. */
extern const struct qmp_command qmp_core_commands[], qmp_block_commands[], qmp_export_commands[],
    qmp_nbd_add_commands[], qmp_fleece_commands[], qmp_backup_commands[], qmp_bitmap_commands[],
    qmp_job_commands[], qmp_transaction_commands[];

const struct qmp_command *qmp_command_find(const char *name);
const struct qmp_command *qmp_command_nth(unsigned i);   /* NULL after the last */

/* Answer one message of a monitor: a response, a new reference. */
json_t *co_qmp_dispatch(struct qmp *q, struct qmp_session *session, const json_t *message);
/* {"error": {...}} */
json_t *qmp_error_response(const struct err *err);
/* {"qemu": {...}, "package": ...} of the greeting and of query-version. */
json_t *qmp_version(void);

/* ---- events ------------------------------------------------------------------------ */

struct qmp_event {
    const char *name;
    const struct schema_type *data;
};
extern const struct qmp_event qmp_events[];    /* ends with an entry without name */

/* Tell every monitor that has negotiated. Takes over @data (NULL: {}). The time
 * told is that of the call. */
void qmp_emit(struct qmp *q, const char *name, json_t *data);       /* main loop */
void qmp_post_event(struct qmp *q, const char *name, json_t *data); /* any thread */
/* Once, whoever asks first. */
void qmp_emit_shutdown(struct qmp *q, enum qmp_shutdown_cause cause);
void qmp_emit_export_deleted(struct qmp *q, const char *id);

/* A listener for node_set_corruption_listener. */
void qmp_bitmap_spoiled(void *arg, const struct dirty_bitmap *bm);
void qmp_image_corrupted(void *arg, const struct node *n, const struct node_corruption *c);

/* The events of every job, with the struct qmp as argument. */
extern const struct job_events qmp_job_events;

/* ---- monitors ---------------------------------------------------------------------- */

/* Queue a whole message for every monitor that has negotiated. */
void qmp_monitors_send(struct qmp *q, const json_t *message);
/* Let each send what it is still to send, then close it; wait until all are gone
 * or @deadline. */
bool co_qmp_monitors_close(struct qmp *q, uint64_t deadline);

/* ---- the areas among each other -------------------------------------------------------- */

/* The NBD server, if one runs, and all exports: gone, or @deadline has passed. */
bool co_qmp_exports_close(struct qmp *q, uint64_t deadline);
/* For an export that was added just now. False: the NBD server was stopped meanwhile, and it is
 * taken away again. */
MUST_CHECK bool qmp_export_stays(struct qmp *q, const char *id, struct err *err);
/* Whether an export can be called @id, and there is a server for it. */
MUST_CHECK bool qmp_export_check(const struct qmp *q, const char *id, struct err *err);
/* co_nbd_export_add and qmp_export_stays. */
MUST_CHECK bool co_qmp_export_add(struct qmp *q, const struct nbd_export_opts *o,
                                  struct err *err);
/* Take export @id away; @mode is of this type. Waits a moment for its end. */
MUST_CHECK bool co_qmp_export_del(struct qmp *q, const char *id, int mode, struct err *err);
extern const struct schema_type export_remove_mode_enum;
/* A node by its name, or by the id of an export of it, as drive-backup and
 * blockdev-backup name their device. New reference. */
struct node *qmp_find_device(struct qmp *q, const char *device, struct err *err);

/* Enums of jobs (QEMU qapi/job.json). */
extern const struct schema_type job_type_enum, job_status_enum;

/* What a job tells of those who write its source (docs/qmp.md): a struct guest_latency. */
extern const struct schema_type guest_latency_type;
struct guest_latency {
    double factor;
    bool has_slowdown;
    double slowdown;
    bool binds;
    int64_t writes, delayed;
    int64_t p50, p99, p999, max;       /* ns */
};
struct guest_latency guest_latency_of(const struct job_info *info);

#endif
