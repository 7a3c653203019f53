/* SPDX-License-Identifier: Apache-2.0
 *
 * What the guest tells the shadow (model_shadow.c).
 */
#ifndef TESTS_MODEL_SHADOW_H
#define TESTS_MODEL_SHADOW_H

#include "model.h"

/* A range that a writer is at, on its stack. */
struct claim {
    struct list link;            /* model->writing */
    uint64_t off, len;
    const uint8_t *new;          /* what is being written; NULL: nothing yet, or a discard */
};

/* The writer is about to send these bytes; NULL: to discard. */
void claim_shows(struct model *m, struct claim *c, const uint8_t *bytes);

#endif
