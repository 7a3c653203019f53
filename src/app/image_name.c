/* SPDX-License-Identifier: Apache-2.0
 *
 * Image names as people type them.
 */
#include "app/image_name.h"
#include "base/mem.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

bool image_name_is_uri(const char *name)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-");

    return n && strncmp(name + n, "://", 3) == 0;
}

static bool ends_with(const char *s, const char *ending)
{
    size_t n = strlen(s), e = strlen(ending);

    return n > e && strcmp(s + n - e, ending) == 0;
}

const char *image_format_by_name(const char *name)
{
    if (!image_name_is_uri(name) && (ends_with(name, ".qcow2") || ends_with(name, ".qcow")))
        return "qcow2";
    return "raw";
}

/* The first bytes of every qcow2 image: docs/interop/qcow2.rst of QEMU, "Header". */
static bool begins_as_qcow2(const char *path)
{
    static const uint8_t magic[4] = { 'Q', 'F', 'I', 0xfb };
    /* Not blocking: a FIFO would wait for its writer. */
    __attribute__((cleanup(cleanup_close))) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    uint8_t got[sizeof(magic)];

    return fd >= 0 && fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) &&
           pread(fd, got, sizeof(got), 0) == sizeof(got) &&
           memcmp(got, magic, sizeof(magic)) == 0;
}

const char *image_format_to_read(const char *name, const char *given, struct err *err)
{
    const char *format = given ? given : image_format_by_name(name);

    if (!given && strcmp(format, "raw") == 0 && !image_name_is_uri(name) &&
        begins_as_qcow2(name)) {
        err_set(err, -EINVAL, "'%s' looks like a qcow2 image, but its name does not say so: "
                "say --format qcow2, or --format raw if a guest wrote that", name);
        return NULL;
    }
    return format;
}

bool image_device_is_free(const char *path, struct err *err)
{
    struct stat st;

    if (stat(path, &st) < 0 || !S_ISBLK(st.st_mode))
        return true;
    /* open(2): with O_EXCL alone the device must not be in use by the system. */
    __attribute__((cleanup(cleanup_close)))
    int fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK);

    return fd >= 0 || errno != EBUSY ||
           err_set(err, -EBUSY, "'%s' is in use by this host: mounted, or a part of another "
                   "device. Unmount it, or take a snapshot of the volume", path);
}

char *image_absolute_path(const char *path, struct err *err)
{
    CLEANUP(free) char *cwd = NULL;

    if (*path == '/')
        return xstrdup(path);
    cwd = getcwd(NULL, 0);
    if (!cwd) {
        err_errno(err, -errno, "Cannot tell the current directory");
        return NULL;
    }
    return xasprintf("%s/%s", cwd, path);
}

char *image_path_beside(const char *by, const char *name)
{
    const char *slash = strrchr(by, '/');

    if (*name == '/' || image_name_is_uri(name) || !slash || image_name_is_uri(by))
        return xstrdup(name);
    return xasprintf("%.*s/%s", (int)(slash - by), by, name);
}

char *image_disk_name(const char *name)
{
    CLEANUP(free) char *path = xstrndup(name, image_name_is_uri(name) ? strcspn(name, "?")
                                                                      : strlen(name));
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const char *dot = strrchr(base, '.');

    return dot && dot > base ? xstrndup(base, (size_t)(dot - base)) : xstrdup(base);
}

bool image_is_locked_by_others(const struct err *err)
{
    return strstr(err->text, "lock: Is another process using the image") != NULL;
}
