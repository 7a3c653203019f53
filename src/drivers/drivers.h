/* SPDX-License-Identifier: Apache-2.0
 *
 * The drivers that the program has. Rooms above name none of them: they register
 * all of them once and work through block/.
 */
#ifndef DRIVERS_DRIVERS_H
#define DRIVERS_DRIVERS_H

#include "block/driver.h"

extern const struct driver file_driver;
extern const struct driver host_device_driver;
extern const struct driver raw_driver;
extern const struct driver null_co_driver;
extern const struct driver nbd_driver;
extern const struct driver fault_driver;
extern const struct driver qcow2_driver;
extern const struct driver copy_before_write_driver;
extern const struct driver snapshot_access_driver;

/* Register every driver, at start, before loops run. A second time does nothing. */
void drivers_register_all(void);

#endif
