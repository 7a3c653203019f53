/* SPDX-License-Identifier: Apache-2.0
 *
 * How long a loop's thread was ready to run and had to wait for a CPU, as the kernel
 * counts it: /proc/thread-self/schedstat (proc(5) is silent; Documentation/scheduler/
 * sched-stats.rst, "/proc/<pid>/schedstat"). A look costs some 2 us.
 */
#include "loop/loop_impl.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

void cpu_wait_open(struct loop *loop)
{
    /* It stays that of this thread. */
    loop->schedstat_fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
}

void cpu_wait_close(struct loop *loop)
{
    if (loop->schedstat_fd >= 0)
        close(loop->schedstat_fd);
    loop->schedstat_fd = -1;
}

bool loop_cpu_wait(struct loop_cpu_wait *ret)
{
    unsigned long long ran, waited, times;
    struct loop *loop = loop_current();
    char text[80];
    ssize_t n;

    assert(loop->turns_timed);
    n = loop->schedstat_fd < 0 ? -1 : pread(loop->schedstat_fd, text, sizeof(text) - 1, 0);
    if (n <= 0)
        return false;
    text[n] = '\0';
    if (sscanf(text, "%llu %llu %llu", &ran, &waited, &times) != 3)
        return false;
    *ret = (struct loop_cpu_wait){ .ns = waited, .times = times };
    return true;
}
