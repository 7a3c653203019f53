/* SPDX-License-Identifier: Apache-2.0
 *
 * Sizes, rates and times as people write and read them. Pure.
 */
#ifndef APP_HUMAN_H
#define APP_HUMAN_H

#include "base/err.h"

#define HUMAN_TEXT 32

/* "388 KiB", "4.77 MiB": three digits, as qemu-img writes sizes. Returns @buf. */
char *human_size(uint64_t bytes, char buf[static HUMAN_TEXT]);

/* "42 s", "3 min 20 s", "2 h 05 min". Returns @buf. */
char *human_duration(uint64_t seconds, char buf[static HUMAN_TEXT]);

/* "850 ns", "12.3 us", "4.77 ms", "1.5 s". Returns @buf. */
char *human_latency(uint64_t ns, char buf[static HUMAN_TEXT]);

/* Bytes a second from "50M", "50M/s" or "1.5GiB/s": units are powers of 1024, and
 * "50MB/s", which might mean another thing, is refused. */
MUST_CHECK bool human_parse_rate(const char *text, uint64_t *ret, struct err *err);

/* "1.5", or "off" for 0. */
MUST_CHECK bool human_parse_factor(const char *text, double *ret, struct err *err);

#endif
