/* SPDX-License-Identifier: Apache-2.0
 *
 * The registry of drivers. It is filled once, before there is a second thread,
 * and only read from then on.
 */
#include "block/driver.h"
#include "base/mem.h"
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define DRIVERS_MAX 32

static const struct driver *drivers[DRIVERS_MAX];
static unsigned n_drivers;

void driver_register(const struct driver *drv)
{
    assert(n_drivers < DRIVERS_MAX && !driver_find(drv->name));
    assert(drv->options && drv->co_open && drv->co_preadv);
    drivers[n_drivers++] = drv;
}

const struct driver *driver_nth(unsigned i)
{
    return i < n_drivers ? drivers[i] : NULL;
}

const struct driver *driver_find(const char *name)
{
    for (unsigned i = 0; i < n_drivers; i++) {
        if (strcmp(drivers[i]->name, name) == 0)
            return drivers[i];
    }
    return NULL;
}

char *storage_id_for_file(const struct stat *st)
{
    if (S_ISBLK(st->st_mode))
        return xasprintf("device:%u:%u", major(st->st_rdev), minor(st->st_rdev));
    return xasprintf("file:%ju:%ju", (uintmax_t)st->st_dev, (uintmax_t)st->st_ino);
}
