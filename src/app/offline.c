/* SPDX-License-Identifier: Apache-2.0
 *
 * One coroutine on a loop in this thread.
 */
#include "app/offline.h"
#include "app/image_name.h"
#include "app/snapshot.h"
#include "drivers/drivers.h"

struct offline {
    struct loop *loop;
    int (*fn)(void *arg);
    void *arg;
    int result;
};

static void co_main(void *arg)
{
    struct offline *o = arg;

    o->result = o->fn(o->arg);
    loop_stop(o->loop);
}

static void start(void *arg)
{
    co_start(co_main, arg);
}

int offline_run(int (*fn)(void *arg), void *arg, struct err *err)
{
    struct offline o = { .fn = fn, .arg = arg };

    o.loop = loop_new(LOOP_ENGINE_AUTO, "main", err);
    if (!o.loop)
        return err->code;
    drivers_register_all();
    loop_post(o.loop, start, &o);
    loop_run(o.loop);
    loop_free(o.loop);
    return o.result;
}

struct node *co_offline_open(const struct offline_open *o, struct err *err)
{
    const char *format = image_format_to_read(o->name, o->format, err);

    if (!format)
        return NULL;

    const struct open_file_opts opts = {
        .filename = o->name, .format = format, .read_only = true, .no_backing = o->no_backing,
        .force_share = o->force_share,
    };
    CLEANUP(json_decref) json_t *json = node_json_for_file(&opts, err);
    struct node *n;

    if (!json)
        return NULL;
    if (o->no_data_file)
        json_object_set_new(json, "data-file", json_pack("{s:s, s:i, s:b}", "driver", "null-co",
                                                         "size", 0, "read-zeroes", true));
    if (!snapshot_choose(json, o->name, format, o->snapshot, err))
        return NULL;
    n = co_node_open(json, false, err);

    if (!n && image_is_locked_by_others(err))
        err_set(err, err->code, "'%s' is open in another process, which may be writing it: "
                "end that, or read it as it is now with --force-share", o->name);
    return n;
}
