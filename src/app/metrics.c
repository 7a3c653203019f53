/* SPDX-License-Identifier: Apache-2.0
 *
 * Metrics: a table of them, each a number in the status of a disk, a bitmap or a job.
 */
#include "app/metrics.h"
#include <stdio.h>

enum of { OF_DISK, OF_STATS, OF_BITMAP, OF_JOB, OF_GUEST };

static const struct metric {
    const char *name;          /* behind "stillpoint_" */
    const char *type, *help;
    enum of of;
    const char *key;
} metrics[] = {
    { "disk_size_bytes", "gauge", "Size of the disk.", OF_DISK, "size" },
    { "disk_clients", "gauge", "Connections of NBD clients.", OF_DISK, "clients" },
    { "disk_reads_total", "counter", "Read requests.", OF_STATS, "reads" },
    { "disk_read_bytes_total", "counter", "Bytes read.", OF_STATS, "read-bytes" },
    { "disk_writes_total", "counter", "Write requests.", OF_STATS, "writes" },
    { "disk_written_bytes_total", "counter", "Bytes written.", OF_STATS, "written-bytes" },
    { "disk_discards_total", "counter", "Discard requests.", OF_STATS, "discards" },
    { "disk_discarded_bytes_total", "counter", "Bytes discarded.", OF_STATS, "discarded-bytes" },
    { "disk_flushes_total", "counter", "Flush requests.", OF_STATS, "flushes" },
    { "disk_errors_total", "counter", "Requests that failed.", OF_STATS, "errors" },
    { "bitmap_dirty_bytes", "gauge", "What the next incremental backup copies.", OF_BITMAP,
      "count" },
    { "bitmap_inconsistent", "gauge", "1: of no use for an incremental backup.", OF_BITMAP,
      "inconsistent" },
    { "job_done_bytes", "gauge", "How far the job is.", OF_JOB, "offset" },
    { "job_total_bytes", "gauge", "How far it has to go.", OF_JOB, "len" },
    { "job_delayed_writes", "gauge", "Writes that had to keep old data first.", OF_GUEST,
      "delayed" },
    { "job_added_latency_p99_nanoseconds", "gauge",
      "That much longer 99 % of the writes took, or less.", OF_GUEST, "p99-ns" },
};

/* A label's value: the format escapes three characters. */
static void put_label(const char *name, const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));

    printf("%s=\"", name);
    for (; text && *text; text++) {
        if (*text == '\n')
            fputs("\\n", stdout);
        else if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else
            putchar(*text);
    }
    putchar('"');
}

static void put_value(const json_t *v)
{
    printf("} %lld\n", json_is_true(v) ? 1LL : (long long)json_integer_value(v));
}

static void put_bitmaps(const struct metric *m, const json_t *disk)
{
    json_t *b;
    size_t i;

    json_array_foreach(json_object_get(disk, "dirty-bitmaps"), i, b) {
        printf("stillpoint_%s{", m->name);
        put_label("disk", disk, "name");
        put_label(",bitmap", b, "name");
        put_value(json_object_get(b, m->key));
    }
}

static void put_one(const struct metric *m, const json_t *o)
{
    const json_t *in = m->of == OF_STATS ? json_object_get(o, "stats")
                     : m->of == OF_GUEST ? json_object_get(o, "guest-latency") : o;

    if (m->of == OF_BITMAP) {
        put_bitmaps(m, o);
    } else if (json_object_get(in, m->key)) {
        printf("stillpoint_%s{", m->name);
        if (m->of == OF_JOB || m->of == OF_GUEST)
            put_label("job", o, "device");
        else
            put_label("disk", o, "name");
        put_value(json_object_get(in, m->key));
    }
}

void metrics_print(const json_t *status)
{
    for (size_t k = 0; k < ARRAY_SIZE(metrics); k++) {
        const struct metric *m = &metrics[k];
        bool job = m->of == OF_JOB || m->of == OF_GUEST;
        json_t *o;
        size_t i;

        printf("# HELP stillpoint_%s %s\n# TYPE stillpoint_%s %s\n", m->name, m->help, m->name,
               m->type);
        json_array_foreach(json_object_get(status, job ? "jobs" : "disks"), i, o)
            put_one(m, o);
    }
}
