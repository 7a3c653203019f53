/* SPDX-License-Identifier: Apache-2.0
 *
 * The keys of -o, by table.
 */
#include "app/image_options.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include <stdio.h>

const char *const image_formats[] = { "raw", "qcow2", NULL };
const char *const image_compats[] = { "0.10", "v2", "1.1", "v3", NULL };
const char *const image_preallocs[] = { "off", "metadata", "falloc", "full", NULL };
static const char *const compressions[] = { "zlib", "zstd", NULL };

#define ENUM_TYPE(var, text, list) \
    static const struct schema_type var = { \
        .name = text, .kind = SCHEMA_ENUM, .size = sizeof(int), .values = list, \
    }
ENUM_TYPE(format_type, "format", image_formats);
ENUM_TYPE(compat_type, "compat", image_compats);
ENUM_TYPE(prealloc_type, "preallocation", image_preallocs);
ENUM_TYPE(compression_type, "compression", compressions);

#define O(field, type, doc) \
    SCHEMA_OPTIONAL(struct image_options, field, #field, type, doc)

static const struct schema_member raw_members[] = {
    O(preallocation, &prealloc_type, "falloc: space is reserved; full: zeros are written"),
    SCHEMA_END,
};

static const struct schema_member qcow2_members[] = {
    O(compat, &compat_type, "0.10 (v2) or 1.1 (v3, the default)"),
    O(cluster_size, &schema_size, "512 to 2M, a power of two; 64k unless given"),
    O(refcount_bits, &schema_uint32, "1 to 64, a power of two; 16 unless given"),
    O(backing_file, &schema_str, "the image to stand on, as the new one is to name it"),
    O(backing_fmt, &format_type, "its format"),
    O(extended_l2, &schema_bool, "32 subclusters in every cluster"),
    O(compression_type, &compression_type, "of compressed clusters; zlib unless given"),
    O(preallocation, &prealloc_type,
      "metadata: tables; falloc: space too; full: zeros are written"),
    O(lazy_refcounts, &schema_bool, "refcounts may be wrong while the image is in use"),
    O(data_file, &schema_str, "a file of its own for the guest's data"),
    O(data_file_raw, &schema_bool, "the data file is a raw image by itself"),
    O(encryption, &schema_bool, "not supported"),
    O(encrypt, &schema_any, "not supported"),
    SCHEMA_END,
};

#undef O

static const struct schema_type types[] = {
    [IMAGE_RAW] = {
        .name = "raw", .kind = SCHEMA_STRUCT, .size = sizeof(struct image_options),
        .members = raw_members,
    },
    [IMAGE_QCOW2] = {
        .name = "qcow2", .kind = SCHEMA_STRUCT, .size = sizeof(struct image_options),
        .members = qcow2_members,
    },
};

bool image_options_want_help(const struct cli_list *given)
{
    for (size_t i = 0; i < given->n; i++) {
        if (strcmp(given->items[i], "help") == 0 || strcmp(given->items[i], "?") == 0)
            return true;
    }
    return false;
}

int image_options_print_help(const char *command, enum image_format format)
{
    CLEANUP(free) char *keys = schema_help(&types[format]);

    printf("Keys of -o for %s images:\n%s", image_formats[format], keys);
    return cli_end_output(command);
}

static bool check(const struct image_options *o, enum image_format format, struct err *err)
{
    if ((o->has_encryption && o->encryption) || o->has_encrypt)
        return err_set(err, -ENOTSUP, "Encrypted images are not supported: leave out 'encryption' "
                       "and 'encrypt', and encrypt below the image (LUKS on the device) or "
                       "inside the guest");
    if (format == IMAGE_RAW && o->preallocation == PREALLOC_METADATA)
        return err_set(err, -EINVAL, "A raw image has no metadata: 'preallocation' is off, falloc "
                       "or full");
    return true;
}

bool image_options_decode(const struct cli_list *given, enum image_format format,
                          struct image_options *ret, struct err *err)
{
    CLEANUP_STRBUF struct strbuf all = STRBUF_INIT;
    CLEANUP(json_decref) json_t *json = NULL;
    bool keyval;

    /* As one text, so that of the same key the last one counts. */
    for (size_t i = 0; i < given->n; i++)
        strbuf_addf(&all, "%s%s", i ? "," : "", given->items[i]);
    json = schema_parse_text(strbuf_text(&all), NULL, &keyval, err);
    if (!json || !schema_decode(&types[format], json, keyval, ret, err)) {
        err_prefix(err, "-o: ");
        return false;
    }
    if (check(ret, format, err))
        return true;
    image_options_clear(ret);
    return false;
}

void image_options_clear(struct image_options *o)
{
    /* Every field of the struct that owns something is a key of qcow2. */
    schema_clear(&types[IMAGE_QCOW2], o);
}

bool image_options_for_qcow2(const struct image_options *o, uint64_t size,
                             struct qcow2_create_opts *ret, struct err *err)
{
    *ret = (struct qcow2_create_opts){
        .size = size,
        .cluster_size = (uint32_t)MIN(o->cluster_size, (uint64_t)UINT32_MAX),
        .version = !o->has_compat ? 0 : o->compat < IMAGE_COMPAT_1_1 ? 2 : 3,
        .refcount_bits = o->refcount_bits,
        .extended_l2 = o->extended_l2,
        .lazy_refcounts = o->lazy_refcounts,
        .compression = (enum qcow2_compression)o->compression_type,
        .data_file = o->data_file,
        .data_file_raw = o->data_file_raw,
        .backing_file = o->backing_file,
        .backing_format = o->has_backing_fmt ? image_formats[o->backing_fmt] : NULL,
    };
    return true;
}
