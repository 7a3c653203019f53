/* SPDX-License-Identifier: Apache-2.0
 *
 * What `stillpoint status` knows, in the text format of Prometheus
 * (https://prometheus.io/docs/instrumenting/exposition_formats/).
 */
#ifndef APP_METRICS_H
#define APP_METRICS_H

#include "base/schema.h"

/* @status: the object that `status --json` prints. To standard output. */
void metrics_print(const json_t *status);

#endif
