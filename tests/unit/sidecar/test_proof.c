/* SPDX-License-Identifier: Apache-2.0
 *
 * What proves that nobody else wrote, for each kind of storage and each way to end; and the
 * words for what does not.
 */
#include "sidecar_test.h"
#include "sidecar/proof.h"

#define SECOND ((int64_t)NSEC_PER_SEC)
#define BOOT (1000 * SECOND)
#define LAST (2000 * SECOND)

static struct sidecar_header h;
static struct sidecar_facts f;

static void file(enum sidecar_state state)
{
    h = (struct sidecar_header){
        .state = state, .boot_id = "one", .disk_size = 4096, .written_ns = LAST, .n_storages = 1,
        .storages = { { .kind = STORAGE_FILE, .dev = 1, .ino = 2, .size = 3, .mtime_ns = LAST,
                        .ctime_ns = LAST } }, .image = "/disk",
    };
    f = (struct sidecar_facts){
        .boot_id = "one", .boot_time_ns = BOOT, .now_ns = LAST + 3600 * SECOND,
        .disk_size = 4096, .n_storages = 1, .storages = { h.storages[0] },
        .has_beat = true, .beat.time_ns = LAST,
    };
}

static void device(enum sidecar_state state)
{
    file(state);
    h.storages[0] = (struct storage_identity){
        .kind = STORAGE_DEVICE, .dev = 1, .size = 3, .diskseq = 9, .written = 100,
    };
    f.storages[0] = h.storages[0];
}

static void is(enum sidecar_verdict want, const char *words)
{
    struct err why = ERR_INIT;

    assert_int_equal(sidecar_judge(&h, &f, &why), want);
    if (words && !strstr(why.text, words))
        fail_msg("'%s' does not say '%s'", why.text, words);
}

static void other_boot(int64_t boot_time)
{
    strcpy((char *)f.boot_id, "two");
    f.boot_time_ns = boot_time;
}

static void closed_file(void **state)
{
    file(SIDECAR_CLEAN);
    is(SIDECAR_EXACT, NULL);
    f.storages[0].dev = 9;
    is(SIDECAR_USELESS, "another file");
    other_boot(3000 * SECOND);           /* numbers of file systems are of their boot */
    is(SIDECAR_EXACT, NULL);
    f.storages[0].ctime_ns++;
    is(SIDECAR_USELESS, "mode, name or links were changed after 1970-01-01 00:33:20 UTC, when it");
    f.storages[0].mtime_ns++;
    is(SIDECAR_USELESS, "changed by another program after 1970-01-01 00:33:20 UTC, when it was");
    file(SIDECAR_CLEAN);
    f.storages[0].mtime_ns--;            /* put back to an older copy's */
    is(SIDECAR_USELESS, "changed by another program");
    file(SIDECAR_CLEAN);
    f.storages[0].size++;
    is(SIDECAR_USELESS, "changed by another program");
    file(SIDECAR_CLEAN);
    f.storages[0].ino++;
    is(SIDECAR_USELESS, "copied or replaced");
    file(SIDECAR_CLEAN);
    f.disk_size++;
    is(SIDECAR_USELESS, "the disk has 4097 bytes, and had 4096");
    file(SIDECAR_CLEAN);
    f.n_storages = 2;
    is(SIDECAR_USELESS, "other files");
    file(SIDECAR_CLEAN);
    f.storages[0].kind = STORAGE_DEVICE;
    is(SIDECAR_USELESS, "another kind");
    file(SIDECAR_SPOILED);
    strcpy(h.reason, "the disk was full");
    is(SIDECAR_USELESS, "the disk was full");
}

static void killed_file(void **state)
{
    file(SIDECAR_OPEN);
    f.storages[0].size = 99;             /* qcow2 grows */
    f.storages[0].mtime_ns = f.storages[0].ctime_ns = LAST + SIDECAR_BEAT_SLACK_NS;
    is(SIDECAR_EXACT, NULL);
    f.storages[0].ctime_ns++;
    is(SIDECAR_USELESS, "had ended without closing it");
    file(SIDECAR_OPEN);
    f.now_ns = LAST - SIDECAR_BEAT_SLACK_NS;
    is(SIDECAR_EXACT, NULL);
    f.now_ns--;                          /* whatever writes now has older times */
    is(SIDECAR_USELESS, "clock was set back");
    file(SIDECAR_OPEN);
    f.has_beat = false;
    is(SIDECAR_USELESS, "is damaged");
}

static void power_cut(void **state)
{
    file(SIDECAR_OPEN);
    other_boot(LAST + 30 * SECOND);
    is(SIDECAR_REGIONS, NULL);
    f.storages[0].mtime_ns = LAST + 30 * SECOND;
    is(SIDECAR_REGIONS, NULL);
    f.storages[0].mtime_ns = LAST + 31 * SECOND;
    is(SIDECAR_USELESS, "when the machine was started again");
    f.storages[0].mtime_ns = LAST + 61 * SECOND;
    is(SIDECAR_USELESS, "went down without closing it");
}

static void devices(void **state)
{
    device(SIDECAR_CLEAN);
    is(SIDECAR_EXACT, NULL);
    f.storages[0].written++;
    is(SIDECAR_USELESS, "changed by another program");
    f.storages[0].diskseq++;
    is(SIDECAR_USELESS, "is another one");
    device(SIDECAR_CLEAN);
    h.storages[0].written = f.storages[0].written = UINT64_MAX;
    is(SIDECAR_USELESS, "does not count");
    device(SIDECAR_CLEAN);
    other_boot(LAST);
    is(SIDECAR_USELESS, "started anew");
    f.exclusive = true;
    is(SIDECAR_EXACT, NULL);
    device(SIDECAR_CLEAN);               /* the operator's word, and what the device counted */
    f.exclusive = true;
    is(SIDECAR_EXACT, NULL);
    f.storages[0].written++;
    is(SIDECAR_USELESS, "changed by another program");
    f.storages[0].diskseq++;             /* attached anew: it counts from zero */
    is(SIDECAR_EXACT, NULL);
    device(SIDECAR_OPEN);
    is(SIDECAR_USELESS, "--exclusive-devices");
    f.exclusive = true;
    is(SIDECAR_EXACT, NULL);
    other_boot(LAST);
    is(SIDECAR_REGIONS, NULL);
}

static void exports(void **state)
{
    file(SIDECAR_CLEAN);
    h.storages[0] = f.storages[0] = (struct storage_identity){ .kind = STORAGE_UNKNOWN };
    is(SIDECAR_USELESS, "--exclusive-devices");
    f.exclusive = true;
    is(SIDECAR_EXACT, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(closed_file),
        cmocka_unit_test(killed_file),
        cmocka_unit_test(power_cut),
        cmocka_unit_test(devices),
        cmocka_unit_test(exports),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
