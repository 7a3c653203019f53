/* SPDX-License-Identifier: Apache-2.0
 *
 * The catalogue of a set that is made by hand, with images that are headers only: order, what
 * stands on what, what is broken and by what, what is left over and what nobody knows.
 */
#include "base/mem.h"
#include "co_test.h"
#include "drivers/qcow2/format.h"
#include "set/catalog.h"
#include "set/file.h"
#include "set/lock.h"
#include "set/name.h"
#include <stdio.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#define CLUSTER 65536

static char dir[64];
static char *uuid;

static void put(const char *name, const char *text)
{
    struct err err = ERR_INIT;

    if (!set_file_write(dir, name, text, strlen(text), &err))
        fail_msg("%s", err.text);
}

static int make(void **state)
{
    struct err err = ERR_INIT;
    CLEANUP(free) char *text = set_description_new(&err);

    strcpy(dir, "/tmp/stillpoint-set-XXXXXX");
    assert_non_null(mkdtemp(dir));
    uuid = set_description_parse(text, strlen(text), &err);
    put(SET_FILE, text);
    return 0;
}

static int drop(void **state)
{
    CLEANUP(free) char *command = xasprintf("rm -r %s", dir);

    free(MOVE(uuid));
    return system(command);
}

/* The manifest of a point with a disk "d", whose image may be there or not. */
static void put_manifest(const char *name, const char *id, unsigned sequence, const char *instant)
{
    CLEANUP(free) char *text = xasprintf("{\"format\": 1, \"set\": \"%s\", \"id\": \"%s\", "
        "\"sequence\": %u, \"instant\": \"%s\", \"duration-ms\": 1, \"version\": \"x\", \"disks\": "
        "[{\"name\": \"d\", \"identity\": \"\", \"size\": 1048576, \"file\": \"%s-d.qcow2\", "
        "\"format\": \"qcow2\", \"kind\": \"full\", \"reason\": \"\", \"bytes\": 1}]}", uuid, id,
        sequence, instant, id);

    put(name, text);
}

static void put_image(const char *name, uint64_t size, const char *backing)
{
    struct qcow2_header h = {
        .version = 3, .cluster_bits = 16, .size = size, .l1_entries = 1, .l1_off = CLUSTER,
        .reftable_off = 2 * CLUSTER, .reftable_clusters = 1, .refcount_order = 4,
        .header_bytes = QCOW2_V3_HEADER_BYTES, .has_backing = backing != NULL,
    };
    CLEANUP(free) char *path = xasprintf("%s/%s", dir, name);
    CLEANUP(free) char *buf = xzalloc(CLUSTER);
    struct err err = ERR_INIT;
    FILE *f = fopen(path, "w");

    if (backing)
        strcpy(h.backing_file, backing);
    assert_true(qcow2_header_write(&h, buf, &err));
    assert_int_equal(fwrite(buf, 1, CLUSTER, f), CLUSTER);
    fclose(f);
}

static void put_point(const char *id, unsigned sequence, const char *instant, const char *backing)
{
    CLEANUP(free) char *manifest = set_manifest_name(id);
    CLEANUP(free) char *image = set_image_name(id, "d");

    put_manifest(manifest, id, sequence, instant);
    put_image(image, MiB, backing);
}

static struct set_catalog look(void)
{
    struct set_catalog c;
    struct err err = ERR_INIT;

    if (!set_catalog_open(dir, &c, &err))
        fail_msg("%s", err.text);
    return c;
}

static void points_are_in_order_and_found(void **state)
{
    struct err err = ERR_INIT;

    put_point("c", 1, "2026-12-01T00:00:00Z", NULL);
    put_point("a2", 2, "2026-12-02T00:00:00Z", "c-d.qcow2");
    put_point("a1", 3, "2026-12-03T00:00:00Z", "a2-d.qcow2");

    struct set_catalog c = look();

    assert_int_equal(c.n_points, 3);
    assert_string_equal(c.points[0].m.id, "c");
    assert_string_equal(c.points[2].m.id, "a1");
    assert_false(c.points[2].broken);
    assert_ptr_equal(c.points[2].images[0].below, &c.points[1].images[0]);
    assert_ptr_equal(c.points[1].images[0].below, &c.points[0].images[0]);
    assert_ptr_equal(set_catalog_last_of(&c, "d"), &c.points[2].images[0]);
    assert_null(set_catalog_last_of(&c, "e"));

    assert_ptr_equal(set_catalog_find(&c, NULL, &err), &c.points[2]);
    assert_ptr_equal(set_catalog_find(&c, "a2", &err), &c.points[1]);
    assert_ptr_equal(set_catalog_find(&c, "2026-12-02T12:00:00Z", &err), &c.points[1]);
    assert_null(set_catalog_find(&c, "a", &err));
    assert_non_null(strstr(err.text, "2 points"));
    assert_null(set_catalog_find(&c, "2026-11-02T12:00:00Z", &err));
    assert_non_null(strstr(err.text, "its first is 'c'"));
    assert_null(set_catalog_find(&c, "z", &err));
    set_catalog_done(&c);
}

static void what_is_broken_breaks_what_stands_on_it(void **state)
{
    put_point("p1", 1, "2026-12-01T00:00:00Z", NULL);
    put_point("p2", 2, "2026-12-02T00:00:00Z", "p1-d.qcow2");
    put_point("p3", 3, "2026-12-03T00:00:00Z", "p2-d.qcow2");
    put_image("p2-d.qcow2", 2 * MiB, "p1-d.qcow2");

    struct set_catalog c = look();

    assert_false(c.points[0].broken);
    assert_non_null(strstr(c.points[1].images[0].broken, "a disk of 2097152 bytes"));
    assert_non_null(strstr(c.points[2].images[0].broken, "'p2-d.qcow2' is a disk"));
    set_catalog_done(&c);

    put_image("p2-d.qcow2", MiB, "gone-d.qcow2");
    c = look();
    assert_non_null(strstr(c.points[2].images[0].broken, "'gone-d.qcow2' is missing"));
    set_catalog_done(&c);
}

static void chains_that_lead_astray_are_broken(void **state)
{
    static const char *const backing[] = { "p1-d.qcow2", "p2-d.qcow2", "../x", "/etc/passwd",
                                           "json:{}", "nbd:h:1" };

    put_point("p1", 1, "2026-12-01T00:00:00Z", NULL);
    put_point("p2", 2, "2026-12-02T00:00:00Z", "p1-d.qcow2");
    for (size_t i = 0; i < ARRAY_SIZE(backing); i++) {
        struct set_catalog c;

        put_image("p1-d.qcow2", MiB, backing[i]);
        c = look();
        assert_true(c.points[0].broken && c.points[1].broken);
        set_catalog_done(&c);
    }
}

static void leftovers_and_strangers_are_told_apart(void **state)
{
    put_point("p1", 1, "2026-12-01T00:00:00Z", NULL);
    put_manifest(".p2.json.pending", "p2", 2, "2026-12-02T00:00:00Z");
    put_image("p2-d.qcow2", MiB, "p1-d.qcow2");
    put("p3.json", "{\"format\": 1");
    put_manifest("p4.json", "p5", 4, "2026-12-02T00:00:00Z");
    put("notes.txt", "mine");
    put(".p6-d.qcow2.stillpoint-partial", "half");
    put(".p6.json.pending.new", "{");

    struct set_catalog c = look();

    assert_int_equal(c.n_points, 1);
    assert_int_equal(c.n_pending, 1);
    assert_string_equal(c.pending[0].images[0].disk->file, "p2-d.qcow2");
    assert_int_equal(c.n_faults, 2);
    assert_string_equal(c.faults[0].file, "p3.json");
    assert_non_null(strstr(c.faults[1].why, "another point, 'p5'"));
    assert_int_equal(c.n_unknown, 1);
    assert_string_equal(c.unknown[0], "notes.txt");
    assert_int_equal(c.n_temporary, 2);
    assert_non_null(set_catalog_image(&c, "p2-d.qcow2"));
    set_catalog_done(&c);
}

static void what_is_no_set_is_said(void **state)
{
    struct set_catalog c;
    struct err err = ERR_INIT;
    bool empty;

    assert_false(set_catalog_open("/tmp/there is no such folder", &c, &err));
    assert_int_equal(err.code, -ENOENT);
    assert_true(set_dir_is_empty(dir, &empty, &err) && !empty);
    assert_true(set_file_remove(dir, SET_FILE, &err));
    assert_false(set_catalog_open(dir, &c, &err));
    assert_int_equal(err.code, -ENODATA);
    assert_true(set_dir_is_empty(dir, &empty, &err) && empty);
    put(SET_FILE, "{\"type\": \"something\"}");
    assert_false(set_catalog_open(dir, &c, &err));
    assert_non_null(strstr(err.text, "does not describe"));
}

static void one_process_changes_a_set(void **state)
{
    struct err err = ERR_INIT;
    CLEANUP(free) char *words = NULL;
    int status, fd = set_lock(dir, &err);
    pid_t pid;

    assert_true(fd >= 0);
    pid = fork();
    if (pid == 0)
        _exit(set_lock(dir, &err) < 0 && strstr(err.text, "being changed") ? 0 : 1);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    words = xasprintf("process %ld", (long)getpid());
    assert_int_equal(set_lock(dir, &err), -1);
    assert_non_null(strstr(err.text, words));
    close(fd);
    fd = set_lock(dir, &err);
    assert_true(fd >= 0);
    close(fd);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(points_are_in_order_and_found),
        TEST(what_is_broken_breaks_what_stands_on_it),
        TEST(chains_that_lead_astray_are_broken),
        TEST(leftovers_and_strangers_are_told_apart),
        TEST(what_is_no_set_is_said),
        TEST(one_process_changes_a_set),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
