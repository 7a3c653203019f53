/* SPDX-License-Identifier: Apache-2.0
 *
 * An empty image: header, refcount table, refcount blocks and L1 table, one after
 * the other, and nothing else. The header is written last, when the rest is on the
 * disk, so that a half made image is none.
 */
#include "drivers/qcow2/create.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/format.h"
#include <inttypes.h>
#include <stdio.h>

/* Clusters of each part. */
struct layout {
    uint32_t cluster_size;
    uint64_t reftable, blocks, l1;
    uint64_t total;              /* with the header */
};

/* Blocks have to count themselves and the table that names them. */
static struct layout plan(uint32_t cluster_bits, uint32_t order, uint64_t l1_entries)
{
    uint64_t cluster = 1ULL << cluster_bits, per_block = cluster * 8 >> order;
    struct layout l = { .cluster_size = (uint32_t)cluster, .reftable = 1, .blocks = 1 };

    l.l1 = MAX(div_round_up(l1_entries * 8, cluster), 1ULL);
    for (;;) {
        uint64_t blocks, reftable;

        l.total = 1 + l.reftable + l.blocks + l.l1;
        blocks = div_round_up(l.total, per_block);
        reftable = div_round_up(blocks * 8, cluster);
        if (blocks <= l.blocks && reftable <= l.reftable)
            return l;
        l.blocks = MAX(blocks, l.blocks);
        l.reftable = MAX(reftable, l.reftable);
    }
}

/* ---- the options --------------------------------------------------------- */

static bool fill_header(const struct qcow2_create_opts *o, struct qcow2_header *h, struct err *err)
{
    uint32_t cluster = o->cluster_size ? o->cluster_size : 65536;
    uint32_t bits = o->refcount_bits ? o->refcount_bits : 16;

    h->version = o->version ? o->version : 3;
    if (h->version != 2 && h->version != 3)
        return err_set(err, -EINVAL, "qcow2 version %" PRIu32 " is not supported", h->version);
    if (!is_power_of_2(cluster) || cluster < 512 || cluster > 2 * MiB)
        return err_set(err, -EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    if (!is_power_of_2(bits) || bits > 64)
        return err_set(err, -EINVAL, "Refcount width must be a power of two and may not exceed "
                       "64 bits");
    if (h->version == 2 && bits != 16)
        return err_set(err, -EINVAL, "Different refcount widths than 16 bits require "
                       "compatibility level 1.1 or above (use version=v3 or greater)");
    if (o->extended_l2 && h->version == 2)
        return err_set(err, -EINVAL, "Extended L2 entries are only supported with compatibility "
                       "level 1.1 and above (use version=v3 or greater)");
    if (o->extended_l2 && cluster < 1U << QCOW2_EXTL2_MIN_CLUSTER_BITS)
        return err_set(err, -EINVAL, "Extended L2 entries are only supported with cluster sizes of "
                       "at least %u bytes", 1U << QCOW2_EXTL2_MIN_CLUSTER_BITS);
    if (h->version == 2 && o->lazy_refcounts)
        return err_set(err, -EINVAL, "Lazy refcounts require compatibility level 1.1 or above "
                       "(use version=v3 or greater)");
    if (o->size > INT64_MAX - 511)
        return err_set(err, -EFBIG, "The image size is too large");
    h->cluster_bits = (uint32_t)__builtin_ctz(cluster);
    h->refcount_order = (uint32_t)__builtin_ctz(bits);
    h->compatible = o->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0;
    h->size = align_up(o->size, 512);
    h->incompatible = o->extended_l2 ? QCOW2_INCOMPAT_EXTL2 : 0;
    h->header_bytes = h->version == 2 ? QCOW2_V2_HEADER_BYTES : QCOW2_V3_HEADER_BYTES + 8;
    if (qcow2_l1_entries_for(h->size, h->cluster_bits, o->extended_l2) > LIMIT_QCOW2_L1_BYTES / 8)
        return err_set(err, -EFBIG, "The image size is too large for a cluster size of %" PRIu32
                       " bytes; try a larger cluster size", cluster);
    h->l1_entries = (uint32_t)MAX(qcow2_l1_entries_for(h->size, h->cluster_bits, o->extended_l2),
                                  1ULL);
    return true;
}

static bool fill_compression(const struct qcow2_create_opts *o, struct qcow2_header *h,
                             struct err *err)
{
    if (o->compression == QCOW2_COMPRESSION_ZLIB)
        return true;
    if (h->version == 2)
        return err_set(err, -EINVAL, "Non-zlib compression type is only supported with "
                       "compatibility level 1.1 and above (use version=v3 or greater)");
    h->compression = (uint8_t)o->compression;
    h->incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    return true;
}

static bool fill_backing(const struct qcow2_create_opts *o, struct qcow2_header *h,
                         struct err *err)
{
    if (!o->backing_file)
        return true;
    if (!*o->backing_file)
        return err_set(err, -EINVAL, "The name of the backing file is empty");
    if (strlen(o->backing_file) > LIMIT_QCOW2_BACKING_NAME)
        return err_set(err, -EINVAL, "The name of the backing file is longer than %d bytes",
                       LIMIT_QCOW2_BACKING_NAME);
    if (!o->backing_format || !*o->backing_format)
        return err_set(err, -EINVAL, "A backing file needs its format to be said");
    if (strlen(o->backing_format) > QCOW2_BACKING_FORMAT_MAX)
        return err_set(err, -EINVAL, "The name of the backing file's format is longer than %d "
                       "bytes", QCOW2_BACKING_FORMAT_MAX);
    h->has_backing = true;
    strcpy(h->backing_file, o->backing_file);
    strcpy(h->backing_format, o->backing_format);
    return true;
}

static bool fill_data_file(const struct qcow2_create_opts *o, struct qcow2_header *h,
                           struct err *err)
{
    if (o->data_file_raw && !o->data_file)
        return err_set(err, -EINVAL, "data-file-raw requires data-file");
    if (!o->data_file)
        return true;
    if (h->version == 2)
        return err_set(err, -EINVAL, "External data files are only supported with compatibility "
                       "level 1.1 and above (use version=v3 or greater)");
    if (o->data_file_raw && o->backing_file)
        return err_set(err, -EINVAL, "Backing file and data-file-raw cannot be used at the same "
                       "time");
    if (!*o->data_file || strlen(o->data_file) > QCOW2_DATA_FILE_MAX)
        return err_set(err, -EINVAL, "The name of the data file is empty or longer than %d bytes",
                       QCOW2_DATA_FILE_MAX);
    strcpy(h->data_file, o->data_file);
    h->incompatible |= QCOW2_INCOMPAT_DATA_FILE;
    h->autoclear |= o->data_file_raw ? QCOW2_AUTOCLEAR_RAW_DATA : 0;
    return true;
}

/* The first cluster, with the names of features where there is room for them: only
 * clusters of 512 bytes with a long name of the backing file have none. */
static bool fill_cluster(const struct qcow2_header *h, void *buf, struct err *err)
{
    size_t cluster = (size_t)1 << h->cluster_bits;
    CLEANUP(free) void *plain = malloc(cluster), *between = malloc(cluster);
    struct qcow2_header_steps steps = { .between = between, .buf = buf };
    uint8_t names[QCOW2_FEATURE_NAMES_BYTES];
    struct qcow2_extension e = { QCOW2_EXT_FEATURE_NAMES, sizeof(names), names };
    struct qcow2_header_change c = { .extensions = &e, .n_extensions = h->version >= 3 };

    if (!plain || !between)
        return err_set(err, -ENOMEM, "Out of memory");
    qcow2_feature_names(names);
    if (!qcow2_header_write(h, plain, err))
        return false;
    if (!qcow2_header_rebuild(plain, cluster, &c, &steps, NULL))
        memcpy(buf, plain, cluster);
    return true;
}

/* ---- writing ------------------------------------------------------------- */

/* Room for the image, reading as zero. */
static bool co_prepare_file(struct node *file, const struct layout *l, struct err *err)
{
    uint64_t bytes = l->total * l->cluster_size;
    int r;

    /* To nothing and up again: a file that can do that reads as zero then. */
    if (co_node_resize(file, 0, NULL) && co_node_resize(file, bytes, err))
        return true;
    if (node_size(file) < bytes && !co_node_resize(file, bytes, err))
        return false;
    r = co_node_write_zeroes(file, 0, bytes, 0);
    return r == 0 || err_errno(err, r, "Could not clear the image");
}

static int co_write_reftable(struct node *file, const struct layout *l)
{
    uint64_t first_block = (1 + l->reftable) * l->cluster_size;
    CLEANUP(free) uint8_t *table = calloc(l->blocks, 8);

    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0; i < l->blocks; i++)
        qcow2_entry_set(table, i, first_block + i * l->cluster_size);
    return co_node_pwrite(file, l->cluster_size, l->blocks * 8, table, 0);
}

static int co_write_blocks(struct node *file, const struct layout *l, uint32_t order)
{
    uint64_t per_block = l->cluster_size * 8ULL >> order, left = l->total;
    uint64_t at = (1 + l->reftable) * l->cluster_size;
    CLEANUP(free) void *block = malloc(l->cluster_size);
    int r = 0;

    if (!block)
        return -ENOMEM;
    for (uint64_t b = 0; b < l->blocks && r == 0; b++, at += l->cluster_size) {
        memset(block, 0, l->cluster_size);
        for (uint64_t i = 0; i < per_block && left; i++, left--)
            qcow2_refcount_set(block, order, i, 1);
        r = co_node_pwrite(file, at, l->cluster_size, block, 0);
    }
    return r;
}

static int co_write_image(struct node *file, const struct layout *l,
                          const struct qcow2_header *h, const void *header)
{
    int r = co_write_reftable(file, l);

    if (r == 0)
        r = co_write_blocks(file, l, h->refcount_order);
    if (r == 0)
        r = co_node_flush(file);
    if (r == 0)
        r = co_node_pwrite(file, 0, l->cluster_size, header, 0);
    if (r == 0)
        r = co_node_flush(file);
    return r;
}

bool co_qcow2_create(struct node *file, const struct qcow2_create_opts *opts, struct err *err)
{
    struct qcow2_header h = { 0 };
    CLEANUP(free) void *header = NULL;
    struct layout l;
    int r;

    if (!fill_header(opts, &h, err) || !fill_compression(opts, &h, err) ||
        !fill_backing(opts, &h, err) || !fill_data_file(opts, &h, err))
        return false;
    l = plan(h.cluster_bits, h.refcount_order, h.l1_entries);
    h.reftable_off = l.cluster_size;
    h.reftable_clusters = (uint32_t)l.reftable;
    h.l1_off = (1 + l.reftable + l.blocks) * l.cluster_size;
    header = malloc(l.cluster_size);
    if (!header)
        return err_set(err, -ENOMEM, "Out of memory");
    if (!fill_cluster(&h, header, err) || !co_prepare_file(file, &l, err))
        return false;
    r = co_write_image(file, &l, &h, header);
    return r == 0 || err_errno(err, r, "Could not write the image");
}
