/* SPDX-License-Identifier: Apache-2.0
 *
 * What a new image shall be like: "-o key=value,..." with the keys of qemu-img
 * create (QEMU docs/tools/qemu-img.rst; qapi/block-core.json,
 * BlockdevCreateOptionsQcow2). One table describes them: taking them apart, the
 * words for misuse and "-o help" come from there.
 *
 * A key that the driver learns gets a member here, a line in the table, and one in
 * image_options_for_qcow2.
 */
#ifndef APP_IMAGE_OPTIONS_H
#define APP_IMAGE_OPTIONS_H

#include "app/cli.h"
#include "drivers/qcow2/create.h"

/* Names of formats by number: options keep the number. NULL-terminated. */
enum image_format { IMAGE_RAW, IMAGE_QCOW2 };
extern const char *const image_formats[];

enum image_compat { IMAGE_COMPAT_0_10, IMAGE_COMPAT_V2, IMAGE_COMPAT_1_1, IMAGE_COMPAT_V3 };
extern const char *const image_compats[];

/* How much of an image has its space from the start. */
enum image_prealloc { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };
extern const char *const image_preallocs[];

struct image_options {
    bool has_compat;
    int compat;                  /* enum image_compat */
    bool has_cluster_size;
    uint64_t cluster_size;
    bool has_refcount_bits;
    uint32_t refcount_bits;
    bool has_backing_file;
    char *backing_file;
    bool has_backing_fmt;
    int backing_fmt;             /* enum image_format */
    bool has_data_file;
    char *data_file;
    bool has_data_file_raw, data_file_raw;
    bool has_extended_l2, extended_l2;
    bool has_lazy_refcounts, lazy_refcounts;
    bool has_compression_type;
    int compression_type;        /* enum qcow2_compression */
    bool has_preallocation;
    int preallocation;           /* enum image_prealloc */
    bool has_encryption, encryption;
    bool has_encrypt;
    json_t *encrypt;
};

/* The option itself, for a command's table; @list is a struct cli_list. */
#define CLI_IMAGE_OPTIONS(list) \
    { "options", 'o', CLI_LIST, list, "KEY=VALUE,...", \
      "of the format, with the keys of qemu-img; '-o help' lists them" }

/* Whether help was asked for instead ("-o help"). */
bool image_options_want_help(const struct cli_list *given);
/* Print the keys that @format has. Gives the exit status. */
int image_options_print_help(const char *command, enum image_format format);

/* Take what all -o say for an image of @format. Freed with image_options_clear. */
MUST_CHECK bool image_options_decode(const struct cli_list *given, enum image_format format,
                                     struct image_options *ret, struct err *err);
void image_options_clear(struct image_options *o);
DEFINE_CLEANUP(struct image_options *, image_options_clear);

/* What the driver is told. The strings stay @o's. False with @err for what it cannot do. */
MUST_CHECK bool image_options_for_qcow2(const struct image_options *o, uint64_t size,
                                        struct qcow2_create_opts *ret, struct err *err);

#endif
