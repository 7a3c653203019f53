/* SPDX-License-Identifier: Apache-2.0
 *
 * NBD URIs: to options of blockdev-add, and from an address. Pure; any thread.
 * The grammar: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
 */
#ifndef DRIVERS_NBD_URI_H
#define DRIVERS_NBD_URI_H

#include "base/err.h"
#include <jansson.h>

#define NBD_DEFAULT_PORT "10809"

/* "nbd://host:port/export" or "nbd+unix:///export?socket=path" as options "server"
 * and "export" of driver nbd. New reference, or NULL with @err. */
json_t *nbd_uri_parse(const char *uri, struct err *err);

/* The reverse, percent-encoded. free() it. */
char *nbd_uri_for_unix(const char *path, const char *export);
char *nbd_uri_for_inet(const char *host, const char *port, const char *export);

#endif
