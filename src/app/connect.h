/* SPDX-License-Identifier: Apache-2.0
 *
 * A connection to an address as users give it.
 */
#ifndef APP_CONNECT_H
#define APP_CONNECT_H

#include "export/nbd/server.h"

/* A connected stream socket, or -errno with @err (may be NULL) filled. A
 * descriptor that was passed in has to be connected. Coroutine. */
int co_connect_to(const struct nbd_address *a, struct err *err);

#endif
