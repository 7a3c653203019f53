/* SPDX-License-Identifier: Apache-2.0
 *
 * Random configurations of images, for runs over everything that the driver knows.
 */
#ifndef TESTS_QCOW2_SHAPES_H
#define TESTS_QCOW2_SHAPES_H

#include "model.h"

/* A shape with the texts that it refers to. */
struct random_shape {
    struct shape shape;
    char name[256], create[200], options[300];
};

/* A shape without a backing file; @size: of the disk, 0 for a random one. Says what
 * it is in its name. */
void random_shape(struct random_shape *r, uint64_t size, uint64_t *seed);
/* Other options of the node, as when it is opened once more. */
void random_options(struct random_shape *r, uint64_t *seed);

#endif
