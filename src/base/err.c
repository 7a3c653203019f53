/* SPDX-License-Identifier: Apache-2.0
 *
 * Filling in struct err.
 */
#include "base/err.h"
#include <stdio.h>
#include <unistd.h>

void cleanup_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static void mark_cut(struct err *err, int n)
{
    if (n >= (int)sizeof(err->text))
        memcpy(err->text + sizeof(err->text) - 4, "...", 4);
}

PRINTF_LIKE(4, 0)
static bool vset(struct err *err, enum err_class class, int code, const char *fmt, va_list ap)
{
    assert(code < 0);
    if (err) {
        err->code = code;
        err->class = class;
        mark_cut(err, vsnprintf(err->text, sizeof(err->text), fmt, ap));
    }
    return false;
}

bool err_set(struct err *err, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vset(err, ERR_GENERIC, code, fmt, ap);
    va_end(ap);
    return false;
}

bool err_set_class(struct err *err, enum err_class class, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vset(err, class, code, fmt, ap);
    va_end(ap);
    return false;
}

bool err_errno(struct err *err, int code, const char *fmt, ...)
{
    char text[sizeof(err->text)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(err, code, "%s: %s", text, strerror(-code));
}

void err_prefix(struct err *err, const char *fmt, ...)
{
    char before[sizeof(err->text)], after[sizeof(err->text)];
    va_list ap;

    if (!err)
        return;
    va_start(ap, fmt);
    vsnprintf(before, sizeof(before), fmt, ap);
    va_end(ap);
    memcpy(after, err->text, sizeof(after));
    int n = snprintf(err->text, sizeof(err->text), "%s", before);
    if (n < (int)sizeof(err->text))
        n += snprintf(err->text + n, sizeof(err->text) - n, "%s", after);
    mark_cut(err, n);
}

const char *err_class_name(enum err_class class)
{
    static const char *const names[] = {
        [ERR_GENERIC] = "GenericError",
        [ERR_COMMAND_NOT_FOUND] = "CommandNotFound",
        [ERR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
        [ERR_DEVICE_NOT_FOUND] = "DeviceNotFound",
        [ERR_KVM_MISSING_CAP] = "KVMMissingCap",
    };

    return names[class];
}
