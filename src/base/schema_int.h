/* SPDX-License-Identifier: Apache-2.0
 *
 * What the schema_*.c files share among themselves; nobody else includes it.
 */
#ifndef BASE_SCHEMA_INT_H
#define BASE_SCHEMA_INT_H

#include "base/schema.h"

/* The member that selects a union's branch. */
const struct schema_member *schema_tag_member(const struct schema_type *t);

/* The tag's text in a decoded union; NULL if decoding did not come that far. */
const char *schema_tag_value(const struct schema_type *t, const void *p);

/* The branch that a decoded union has chosen; NULL for none. */
const struct schema_type *schema_branch(const struct schema_type *t, const void *p);

/* Where a union keeps the pointer to its decoded branch. */
void **schema_branch_slot(const struct schema_type *t, const void *p);

#endif
