/* SPDX-License-Identifier: Apache-2.0
 *
 * The one function of a fuzz target, as libFuzzer calls it and as fuzz_main.c
 * does. A target checks by assertion; it returns 0.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
