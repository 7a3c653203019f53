/* SPDX-License-Identifier: Apache-2.0
 *
 * The floor of copying a file: two threads, each pread and pwrite of 1 MiB, and
 * nothing else. What no program that moves the bytes can be much faster than.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK (1 << 20)

static int in, out;
static off_t size;

static void *half(void *arg)
{
    char *buf = malloc(CHUNK);

    for (off_t at = (off_t)(size_t)arg * CHUNK; at < size; at += 2 * CHUNK) {
        ssize_t n = pread(in, buf, CHUNK, at);
        if (n < 0 || pwrite(out, buf, n, at) != n) {
            perror("floor");
            exit(1);
        }
    }
    free(buf);
    return NULL;
}

int main(int argc, char **argv)
{
    struct stat st;
    pthread_t other;

    if (argc != 3)
        return 2;
    in = open(argv[1], O_RDONLY);
    out = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (in < 0 || out < 0 || fstat(in, &st) < 0) {
        perror("floor");
        return 1;
    }
    size = st.st_size;
    pthread_create(&other, NULL, half, (void *)1);
    half(NULL);
    pthread_join(other, NULL);
    return 0;
}
