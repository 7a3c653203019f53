/* SPDX-License-Identifier: Apache-2.0
 *
 * The list of drivers.
 */
#include "drivers/drivers.h"
#include "sidecar/sidecar.h"

void drivers_register_all(void)
{
    if (driver_find("file"))
        return;
    driver_register(&file_driver);
    driver_register(&host_device_driver);
    driver_register(&raw_driver);
    driver_register(&qcow2_driver);
    driver_register(&null_co_driver);
    driver_register(&nbd_driver);
    driver_register(&fault_driver);
    driver_register(&copy_before_write_driver);
    driver_register(&snapshot_access_driver);
    sidecar_register();
}
