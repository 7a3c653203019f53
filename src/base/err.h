/* SPDX-License-Identifier: Apache-2.0
 *
 * The control path's error: a code for programs and a sentence for people,
 * held by value so that nothing has to be freed and reporting cannot fail.
 * The data path uses plain negative errno and never this.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include "base/base.h"
#include <stdarg.h>

/* QMP's error classes (QEMU qapi/error.json, QapiErrorClass). */
enum err_class {
    ERR_GENERIC,
    ERR_COMMAND_NOT_FOUND,
    ERR_DEVICE_NOT_ACTIVE,
    ERR_DEVICE_NOT_FOUND,
    ERR_KVM_MISSING_CAP,
};

struct err {
    int code;             /* negative errno; 0: no error */
    enum err_class class;
    char text[1024];      /* a whole sentence without a full stop */
};

#define ERR_INIT { 0 }

/* Fill @err (which may be NULL) and return false, so that a function may say
 * `return err_set(err, -EINVAL, "...")`. @code is a negative errno. A text that
 * is too long is cut with "...". Any thread. */
bool err_set(struct err *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
bool err_set_class(struct err *err, enum err_class class, int code, const char *fmt, ...)
    PRINTF_LIKE(4, 5);

/* err_set with ": " and strerror(-code) added. */
bool err_errno(struct err *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Put words before what @err already says. @err may be NULL. */
void err_prefix(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* "GenericError", "DeviceNotFound", ... */
const char *err_class_name(enum err_class class);

#endif
