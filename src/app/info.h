/* SPDX-License-Identifier: Apache-2.0
 *
 * What is known of an image, as words for people.
 */
#ifndef APP_INFO_H
#define APP_INFO_H

#include <jansson.h>

/* Print an ImageInfo (QEMU qapi/block-core.json) in the words of qemu-img info. */
void info_print(const json_t *info);

#endif
