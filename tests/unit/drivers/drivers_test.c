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

static enum loop_engine engine;
static char disk_dir[64], memory_dir[64];

/* ---- loops ------------------------------------------------------------------------- */

struct loop *test_loop_new(const char *name)
{
    struct err err = ERR_INIT;
    struct loop *loop = loop_new(engine, name, &err);

    if (!loop)
        fail_msg("%s", err.text);
    return loop;
}

static void body(void *arg)
{
    void (**fn)(void) = arg;

    (*fn)();
    loop_stop(loop_current());
}

static void start_body(void *arg)
{
    co_start(body, arg);
}

void in_loop(void (*fn)(void))
{
    struct loop *loop = test_loop_new("test");

    loop_post(loop, start_body, &fn);
    loop_run(loop);
    loop_free(loop);
}

struct together {
    void (*fn)(void *arg);
    void *arg;
    unsigned left;
    struct co *waiter;
};

static void one_of_many(void *arg)
{
    struct together *t = arg;

    t->fn(t->arg);
    if (--t->left == 0)
        co_wake(t->waiter);
}

void co_together(unsigned n, void (*fn)(void *arg), void *arg)
{
    struct together t = { fn, arg, n, co_self() };

    for (unsigned i = 0; i < n; i++)
        co_start(one_of_many, &t);
    co_suspend();
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

static struct node *co_open_text(const char *fmt, va_list ap, struct err *err)
{
    CLEANUP(free) char *text = xvasprintf(fmt, ap);
    struct err bad = ERR_INIT;

    for (char *p = text; *p; p++) {
        if (*p == '\'')
            *p = '"';
    }
    json_t *json = schema_parse_json(text, strlen(text), &bad);

    if (!json)
        fail_msg("%s: %s", bad.text, text);

    struct node *n = co_node_open(json, false, err);

    json_decref(json);
    return n;
}

struct node *co_open(const char *fmt, ...)
{
    struct err err = ERR_INIT;
    va_list ap;

    va_start(ap, fmt);
    struct node *n = co_open_text(fmt, ap, &err);
    va_end(ap);
    if (!n)
        fail_msg("%s", err.text);
    return n;
}

void co_open_refused(const char *words, const char *fmt, ...)
{
    struct err err = ERR_INIT;
    va_list ap;

    va_start(ap, fmt);
    struct node *n = co_open_text(fmt, ap, &err);
    va_end(ap);
    assert_null(n);
    assert_true(err.code < 0);
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

/* splitmix64 */
uint64_t random_next(struct random *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

uint64_t random_below(struct random *r, uint64_t n)
{
    return random_next(r) % n;
}

/* ---- main --------------------------------------------------------------------------------- */

int drivers_test_main(int argc, char **argv, const char *group, const struct CMUnitTest *tests,
                      size_t n)
{
    struct err err = ERR_INIT;

    engine = argc > 1 && strcmp(argv[1], "pool") == 0 ? LOOP_ENGINE_POOL : LOOP_ENGINE_URING;

    struct loop *loop = loop_new(engine, "probe", &err);

    if (!loop) {
        fprintf(stderr, "%s\n", err.text);
        return SKIP;
    }
    loop_free(loop);
    snprintf(disk_dir, sizeof(disk_dir), "/var/tmp/stillpoint-XXXXXX");
    snprintf(memory_dir, sizeof(memory_dir), "/dev/shm/stillpoint-XXXXXX");
    if (!mkdtemp(disk_dir) || !mkdtemp(memory_dir)) {
        perror("mkdtemp");
        return 1;
    }
    atexit(remove_dirs);
    drivers_register_all();
    alarm(TEST_SECONDS);
    return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
}
