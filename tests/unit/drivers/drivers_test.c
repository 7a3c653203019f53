/* SPDX-License-Identifier: Apache-2.0
 *
 * What drivers_test.h declares.
 */
#include "drivers_test.h"
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <unistd.h>

#define SKIP 77   /* Meson's code for a skipped test */

/* A test that hangs says so, rather than wait for the runner. */
#define TEST_SECONDS 120

static char disk_dir[64], memory_dir[64];

void co_together(unsigned n, void (*fn)(void *arg), void *arg)
{
    struct crew crew = { 0 };

    while (n--)
        crew_start(&crew, fn, arg);
    co_crew_wait(&crew);
}

/* ---- files --------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void remove_dirs(void)
{
    nftw(disk_dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    nftw(memory_dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* A long run that is cut off leaves nothing in memory. Only what a signal handler may do. */
static void on_interrupt(int sig)
{
    if (fork() == 0) {
        execl("/bin/rm", "rm", "-rf", disk_dir, memory_dir, (char *)NULL);
        _exit(127);
    }
    _exit(128 + sig);
}

const char *test_dir(void)
{
    return disk_dir;
}

const char *test_memory_dir(void)
{
    return memory_dir;
}

#define TEXTS_MAX 4096

const char *test_text(const char *fmt, ...)
{
    static char *texts[TEXTS_MAX];
    static unsigned n;
    va_list ap;

    va_start(ap, fmt);
    char **slot = &texts[n++ % TEXTS_MAX];
    free(*slot);
    *slot = xvasprintf(fmt, ap);
    va_end(ap);
    return *slot;
}

const char *test_path(const char *name)
{
    return test_text("%s/%s", disk_dir, name);
}

void make_file(const char *path, uint64_t size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
}

void file_read(const char *path, uint64_t off, void *buf, size_t len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, buf, len, (off_t)off), len);
    close(fd);
}

void file_write(const char *path, uint64_t off, const void *buf, size_t len)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, buf, len, (off_t)off), len);
    close(fd);
}

/* ---- nodes ------------------------------------------------------------------------------ */

void co_open_refused(const char *words, const char *fmt, ...)
{
    CLEANUP(free) char *text = NULL;
    struct err err = ERR_INIT;
    va_list ap;

    va_start(ap, fmt);
    text = xvasprintf(fmt, ap);
    va_end(ap);
    co_test_open_fails(&err, "%s", text);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

void co_fill(struct node *n, uint64_t off, uint64_t len, unsigned char byte)
{
    CLEANUP(free) void *buf = memset(xmalloc(len), byte, len);

    assert_int_equal(co_node_pwrite(n, off, len, buf, 0), 0);
}

void co_expect(struct node *n, uint64_t off, uint64_t len, unsigned char byte)
{
    CLEANUP(free) unsigned char *buf = memset(xmalloc(len), ~byte, len);

    assert_int_equal(co_node_pread(n, off, len, buf, 0), 0);
    for (uint64_t i = 0; i < len; i++) {
        if (buf[i] != byte)
            fail_msg("byte %ju is %d, not %d", (uintmax_t)(off + i), buf[i], byte);
    }
}

struct block_status co_status(struct node *n, uint64_t off, uint64_t len)
{
    struct block_status st;

    assert_int_equal(co_node_status(n, off, len, &st), 0);
    assert_true(st.len > 0 && st.len <= len);
    return st;
}

/* ---- main --------------------------------------------------------------------------------- */

int drivers_test_main(int argc, char **argv, const char *group, const struct CMUnitTest *tests,
                      size_t n)
{
    if (argc > 1 && !test_use_engine(argv[1])) {
        fprintf(stderr, "this kernel has no %s\n", argv[1]);
        return SKIP;
    }
    snprintf(disk_dir, sizeof(disk_dir), "/var/tmp/stillpoint-XXXXXX");
    snprintf(memory_dir, sizeof(memory_dir), "/dev/shm/stillpoint-XXXXXX");
    if (!mkdtemp(disk_dir) || !mkdtemp(memory_dir)) {
        perror("mkdtemp");
        return 1;
    }
    atexit(remove_dirs);
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    drivers_register_all();
    alarm(TEST_SECONDS);
    return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
}
