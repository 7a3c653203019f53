/* SPDX-License-Identifier: Apache-2.0
 *
 * Image locks, between descriptors of our own and against QEMU's tools: each
 * side must keep the other out exactly where QEMU keeps QEMU out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "block/lock.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/stillpoint-lock-XXXXXX";
static char image[64], overlay[64], socket_path[64];

static int open_image(const char *path, bool read_only)
{
    int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

/* Open @path as the driver of files does; -1 with @err when others are in the way. */
static int open_locked(const char *path, bool read_only, struct err *err)
{
    int fd = open_image(path, read_only);

    if (image_lock_file(fd, path, read_only, err))
        return fd;
    close(fd);
    return -1;
}

/* ---- among ourselves -------------------------------------------------------------- */

static void readers_share_and_a_writer_is_alone(void **state)
{
    struct err err = ERR_INIT;
    char want[256];
    int r1 = open_locked(image, true, &err), r2 = open_locked(image, true, &err);

    assert_true(r1 >= 0 && r2 >= 0);
    assert_int_equal(open_locked(image, false, &err), -1);
    assert_int_equal(err.code, -EAGAIN);
    snprintf(want, sizeof(want), "Failed to get \"write\" lock: Is another process using the "
             "image [%s]?", image);
    assert_string_equal(err.text, want);
    close(r1);
    close(r2);

    int w = open_locked(image, false, &err);

    assert_true(w >= 0);
    assert_int_equal(open_locked(image, true, &err), -1);
    snprintf(want, sizeof(want), "Failed to get shared \"write\" lock: Is another process using "
             "the image [%s]?", image);
    assert_string_equal(err.text, want);
    close(w);
}

/* What a failed attempt took it gives back, and a changed mind lets go. */
static void locks_do_not_stay_behind(void **state)
{
    struct err err = ERR_INIT;
    int w = open_locked(image, false, &err);
    int other = open_image(image, false);

    assert_false(image_lock_file(other, image, false, &err));
    close(w);
    w = open_locked(image, false, &err);
    assert_true(w >= 0);
    assert_true(image_lock(w, image, IMAGE_CONSISTENT_READ, IMAGE_ALL, &err));
    assert_true(image_lock_file(other, image, false, &err));
    close(other);
    close(w);
}

static void resizing_is_a_permission_of_its_own(void **state)
{
    struct err err = ERR_INIT;
    int a = open_image(image, false), b = open_image(image, false);

    assert_true(image_lock(a, image, IMAGE_WRITE, IMAGE_ALL & ~IMAGE_RESIZE, &err));
    assert_true(image_lock(b, image, IMAGE_WRITE, IMAGE_ALL, &err));
    assert_false(image_lock(b, image, IMAGE_RESIZE, IMAGE_ALL, &err));
    assert_non_null(strstr(err.text, "\"resize\" lock"));
    close(a);
    close(b);
}

static void what_cannot_be_locked_is_an_error(void **state)
{
    struct err err = ERR_INIT;
    int fd = open(image, O_WRONLY | O_CLOEXEC);

    assert_false(image_lock_file(-1, "nothing", true, &err));
    assert_int_equal(err.code, -EBADF);
    assert_string_equal(err.text, "Failed to lock byte 100: Bad file descriptor");
    assert_false(image_lock_file(fd, image, true, &err));   /* not open for reading */
    close(fd);
}

/* ---- against QEMU -------------------------------------------------------------------- */

static pid_t start(const char *const *argv)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);

        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    return pid;
}

static int run(const char *const *argv)
{
    int status;
    pid_t pid = start(argv);

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool have_qemu(void)
{
    return run((const char *const[]){ "qemu-io", "--version", NULL }) == 0 &&
           run((const char *const[]){ "qemu-nbd", "--version", NULL }) == 0 &&
           run((const char *const[]){ "qemu-img", "--version", NULL }) == 0;
}

static bool qemu_io(const char *path, const char *format, const char *command, bool read_only)
{
    const char *rw[] = { "qemu-io", "-f", format, "-c", command, path, NULL };
    const char *ro[] = { "qemu-io", "-r", "-f", format, "-c", command, path, NULL };

    return run(read_only ? ro : rw) == 0;
}

/* Whether somebody answers there: it listens before it has opened the image, and
 * says hello after. */
static bool is_answered(const struct sockaddr_un *addr)
{
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char magic[8];
    bool ok = connect(s, (const struct sockaddr *)addr, sizeof(*addr)) == 0 &&
              recv(s, magic, sizeof(magic), MSG_WAITALL) == sizeof(magic);

    close(s);
    return ok;
}

/* Started and serving: a connection is answered. */
static pid_t start_nbd(const char *path, bool read_only)
{
    const char *rw[] = { "qemu-nbd", "-t", "-f", "raw", "-k", socket_path, path, NULL };
    const char *ro[] = { "qemu-nbd", "-t", "-r", "-f", "raw", "-k", socket_path, path, NULL };
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    pid_t pid = start(read_only ? ro : rw);
    bool up = false;

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", socket_path);
    for (int i = 0; i < 2000 && !up; i++) {
        up = is_answered(&addr);
        if (!up)
            poll(NULL, 0, 5);
    }
    assert_true(up);
    return pid;
}

static void stop_nbd(pid_t pid)
{
    kill(pid, SIGTERM);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void qemu_keeps_out_of_what_we_write(void **state)
{
    struct err err = ERR_INIT;

    if (!have_qemu())
        skip();
    assert_true(qemu_io(image, "raw", "write 0 4k", false));
    int w = open_locked(image, false, &err);

    assert_true(w >= 0);
    assert_false(qemu_io(image, "raw", "write 0 4k", false));
    assert_false(run((const char *const[]){ "qemu-img", "resize", "-f", "raw", image, "2M",
                                            NULL }) == 0);
    close(w);
    assert_true(qemu_io(image, "raw", "write 0 4k", false));

    /* As a format that must not change under it. */
    w = open_locked(overlay, false, &err);
    assert_true(w >= 0);
    assert_false(qemu_io(overlay, "qcow2", "read 0 4k", true));
    assert_true(run((const char *const[]){ "qemu-img", "info", "-U", overlay, NULL }) == 0);
    close(w);
    assert_true(qemu_io(overlay, "qcow2", "read 0 4k", true));
}

static void readers_of_both_sides_share(void **state)
{
    struct err err = ERR_INIT;

    if (!have_qemu())
        skip();
    int r = open_locked(image, true, &err);

    assert_true(r >= 0);
    assert_true(qemu_io(image, "raw", "read 0 4k", true));
    assert_false(qemu_io(image, "raw", "write 0 4k", false));
    close(r);

    pid_t nbd = start_nbd(image, true);

    r = open_locked(image, true, &err);
    assert_true(r >= 0);
    close(r);
    stop_nbd(nbd);
}

static void we_keep_out_of_what_qemu_writes(void **state)
{
    struct err err = ERR_INIT;

    if (!have_qemu())
        skip();
    pid_t nbd = start_nbd(image, false);

    assert_int_equal(open_locked(image, false, &err), -1);
    assert_non_null(strstr(err.text, "lock: Is another process using the image ["));
    assert_int_equal(open_locked(image, true, &err), -1);
    stop_nbd(nbd);
    int w = open_locked(image, false, &err);

    assert_true(w >= 0);
    close(w);
}

/* ---- */

static int set_up(void **state)
{
    if (!mkdtemp(dir))
        return -1;
    snprintf(image, sizeof(image), "%s/image", dir);
    snprintf(overlay, sizeof(overlay), "%s/qcow2", dir);
    snprintf(socket_path, sizeof(socket_path), "%s/sock", dir);
    int fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
        return -1;
    close(fd);
    return run((const char *const[]){ "qemu-img", "create", "-q", "-f", "qcow2", overlay, "1M",
                                      NULL }) < 0;
}

static int tear_down(void **state)
{
    unlink(image);
    unlink(overlay);
    unlink(socket_path);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_share_and_a_writer_is_alone),
        cmocka_unit_test(locks_do_not_stay_behind),
        cmocka_unit_test(resizing_is_a_permission_of_its_own),
        cmocka_unit_test(what_cannot_be_locked_is_an_error),
        cmocka_unit_test(qemu_keeps_out_of_what_we_write),
        cmocka_unit_test(readers_of_both_sides_share),
        cmocka_unit_test(we_keep_out_of_what_qemu_writes),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
