/* SPDX-License-Identifier: Apache-2.0
 *
 * Telling a service manager how the daemon is (systemd's sd_notify(3): a datagram to
 * the socket that $NOTIFY_SOCKET names). Without one this does nothing.
 */
#ifndef APP_NOTIFY_H
#define APP_NOTIFY_H

void notify_ready(void);       /* disks are on line, and control sockets answer */
void notify_stopping(void);

#endif
