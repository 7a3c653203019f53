/* SPDX-License-Identifier: Apache-2.0
 *
 * ImageInfo in the words of qemu-img info.
 */
#include "app/info.h"
#include "app/human.h"
#include "app/snapshot.h"
#include "base/mem.h"
#include <stdio.h>

#define INDENT 4

static json_int_t int_of(const json_t *info, const char *key)
{
    return json_integer_value(json_object_get(info, key));
}

static const char *text_of(const json_t *info, const char *key)
{
    return json_string_value(json_object_get(info, key));
}

/* ---- facts of a format, whatever they are -------------------------------------------- */

static void print_value(int indent, json_t *value);

static void print_members(int indent, json_t *object)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value) {
        CLEANUP(free) char *words = xstrdup(key);

        for (char *p = words; *p; p++) {
            if (*p == '-')
                *p = ' ';
        }
        printf("%*s%s:", indent, "", words);
        print_value(indent, value);
    }
}

static void print_elements(int indent, json_t *array)
{
    json_t *value;
    size_t i;

    json_array_foreach(array, i, value) {
        printf("%*s[%zu]:", indent, "", i);
        print_value(indent, value);
    }
}

/* Behind its name: in the same line, or in lines of its own below it. */
static void print_value(int indent, json_t *value)
{
    CLEANUP(free) char *text = NULL;

    if (json_is_object(value)) {
        putchar('\n');
        print_members(indent + INDENT, value);
    } else if (json_is_array(value)) {
        putchar('\n');
        print_elements(indent + INDENT, value);
    } else if (json_is_string(value)) {
        printf(" %s\n", json_string_value(value));
    } else {
        text = json_dumps(value, JSON_ENCODE_ANY);
        printf(" %s\n", text);
    }
}

static void print_specific(int indent, const json_t *specific)
{
    json_t *data = json_object_get(specific, "data");

    if (!json_object_size(data))
        return;
    printf("%*sFormat specific information:\n", indent, "");
    print_members(indent + INDENT, data);
}

/* ---- an image ------------------------------------------------------------------------ */

static void print_sizes(int indent, const json_t *info, const char *what)
{
    uint64_t size = (uint64_t)int_of(info, "virtual-size");
    char buf[HUMAN_TEXT];

    printf("%*s%s: %s (%llu bytes)\n", indent, "", what, human_size(size, buf),
           (unsigned long long)size);
    printf("%*sdisk size: %s\n", indent, "", json_object_get(info, "actual-size")
           ? human_size((uint64_t)int_of(info, "actual-size"), buf) : "unavailable");
    if (int_of(info, "cluster-size"))
        printf("%*scluster_size: %lld\n", indent, "", (long long)int_of(info, "cluster-size"));
}

static void print_backing(const json_t *info)
{
    const char *backing = text_of(info, "backing-filename");
    const char *full = text_of(info, "full-backing-filename");

    if (!backing)
        return;
    printf("backing file: %s", backing);
    if (full && strcmp(backing, full) != 0)
        printf(" (actual path: %s)", full);
    putchar('\n');
    if (text_of(info, "backing-filename-format"))
        printf("backing file format: %s\n", text_of(info, "backing-filename-format"));
}

/* A file below, and those below it. @path: where it hangs, "/file". */
static void print_child(const json_t *child, const char *above)
{
    const json_t *info = json_object_get(child, "info");
    CLEANUP(free) char *path = xasprintf("%s/%s", above, text_of(child, "name"));
    size_t i;
    json_t *below;

    printf("Child node '%s':\n", path);
    printf("%*sfilename: %s\n", INDENT, "", text_of(info, "filename"));
    printf("%*sprotocol type: %s\n", INDENT, "", text_of(info, "format"));
    print_sizes(INDENT, info, "file length");
    print_specific(INDENT, json_object_get(info, "format-specific"));
    json_array_foreach(json_object_get(info, "children"), i, below)
        print_child(below, path);
}

void info_print(const json_t *info)
{
    json_t *child;
    size_t i;

    printf("image: %s\nfile format: %s\n", text_of(info, "filename"), text_of(info, "format"));
    print_sizes(0, info, "virtual size");
    if (json_is_true(json_object_get(info, "dirty-flag")))
        printf("cleanly shut down: no\n");
    print_backing(info);
    print_snapshot_list(json_object_get(info, "snapshots"));
    print_specific(0, json_object_get(info, "format-specific"));
    json_array_foreach(json_object_get(info, "children"), i, child)
        print_child(child, "");
    if (text_of(info, "data-file-error"))
        printf("Child node '/data-file':\n%*snot available: %s\n", INDENT, "",
               text_of(info, "data-file-error"));
}
