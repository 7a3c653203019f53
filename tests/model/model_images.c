/* SPDX-License-Identifier: Apache-2.0
 *
 * Image files of the model.
 */
#include "model.h"
#include "drivers/qcow2/create.h"
#include "base/mem.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static struct node *co_open_json(struct model *m, json_t *json)
{
    struct err err = ERR_INIT;
    struct node *n = co_node_open(json, false, &err);

    /* A judge that is being started shares our locks until its exec is through. */
    for (int tries = 0; !n && m->peers && tries < 100; tries++) {
        co_sleep(NSEC_PER_MSEC);
        n = co_node_open(json, false, &err);
    }
    json_decref(json);
    if (!n)
        model_fail(m, "%s", err.text);
    return n;
}

void co_image_create(struct model *m, struct image *im, const struct image_opts *o)
{
    bool qcow2 = o->format == MODEL_QCOW2;
    struct err err = ERR_INIT;

    *im = (struct image){ .format = o->format };
    snprintf(im->path, sizeof(im->path), "%s/%u.%s", m->dir, m->n_images++,
             qcow2 ? "qcow2" : "raw");
    int fd = open(im->path, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || (!qcow2 && ftruncate(fd, m->size) < 0))
        model_fail(m, "%s: %s", im->path, strerror(errno));
    close(fd);
    if (!qcow2)
        return;

    struct qcow2_create_opts q = {
        .size = m->size,
        .cluster_size = o->cluster_size,
        .backing_file = o->backing,
        .backing_format = o->backing_format,
    };
    struct node *file = co_open_json(m, json_pack("{ss,ss}", "driver", "file",
                                                  "filename", im->path));

    if (!co_qcow2_create(file, &q, &err))
        model_fail(m, "%s: %s", im->path, err.text);
    co_node_unref(file);
}

void co_image_open(struct model *m, struct image *im, bool backing, bool read_only)
{
    json_t *file = json_pack("{ss,ss,ss}", "driver", "file", "filename", im->path,
                             "discard", "unmap");
    json_t *fault = json_pack("{ss,so,ss}", "driver", "fault", "file", file, "discard", "unmap");
    json_t *json = json_pack("{ss,so,ss,sb}", "driver", im->format == MODEL_QCOW2 ? "qcow2" : "raw",
                             "file", fault, "discard", "unmap", "read-only", read_only);

    if (im->format == MODEL_QCOW2 && !backing)
        json_object_set_new(json, "backing", json_null());
    im->node = co_open_json(m, json);
    im->fault = node_ref(edge_node(im->node->file));
}

void co_image_close(struct image *im)
{
    node_unref(MOVE(im->fault));
    co_node_unref(MOVE(im->node));
}

struct search {
    const char *path;
    bool found;
};

static void look_at(struct node *n, void *arg)
{
    CLEANUP(free) struct node_info *info = xnew(struct node_info);
    struct search *s = arg;

    node_get_info(n, info);
    s->found |= strcmp(info->filename, s->path) == 0;
}

bool image_is_open(const struct image *im)
{
    struct search s = { .path = im->path };

    node_for_each(look_at, &s);
    return s.found;
}

void image_delete(struct image *im)
{
    unlink(im->path);
}
