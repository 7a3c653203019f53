/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a fuzz target as an ordinary test: every file of a corpus folder, as it is
 * and with a number of changes to it that are the same in every run. Hunting is
 * libFuzzer's work: link the target with -fsanitize=fuzzer in place of this file.
 *
 *   fuzz-NAME CORPUS-FOLDER [CHANGES]      (default 500 a file)
 */
#include "fuzz.h"
#include "base/mem.h"
#include <dirent.h>
#include <stdio.h>

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* Give the target a block of exactly @size bytes, so that a sanitizer sees a read
 * past its end. */
static void run_one(const uint8_t *data, size_t size)
{
    uint8_t *copy = xmemdup(data, size);

    (void)LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void run_changed(const uint8_t *data, size_t size, uint64_t *random)
{
    uint8_t *copy = xmemdup(data, size);
    size_t cut = next_random(random) % 4 ? size : next_random(random) % (size + 1);

    for (uint64_t n = 1 + next_random(random) % 4; n && size; n--) {
        uint64_t r = next_random(random);
        static const uint8_t edges[] = { 0, 1, 0x7f, 0x80, 0xff };

        copy[r % size] = r >> 63 ? edges[(r >> 32) % sizeof(edges)] : (uint8_t)(r >> 40);
    }
    run_one(copy, cut);
    free(copy);
}

static void run_file(const char *path, unsigned changes)
{
    static uint8_t buf[1 << 20];
    FILE *f = fopen(path, "rb");
    uint64_t random = 1;
    size_t size;

    if (!f) {
        perror(path);
        exit(1);
    }
    size = fread(buf, 1, sizeof(buf), f);
    fclose(f);
    run_one(buf, size);
    for (unsigned i = 0; i < changes; i++)
        run_changed(buf, size, &random);
}

int main(int argc, char **argv)
{
    unsigned changes = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 500, files = 0;
    DIR *dir = argc > 1 ? opendir(argv[1]) : NULL;

    if (!dir) {
        fprintf(stderr, "usage: %s CORPUS-FOLDER [CHANGES]\n", argv[0]);
        return 2;
    }
    for (struct dirent *e; (e = readdir(dir)); ) {
        char *path;

        if (e->d_name[0] == '.')
            continue;
        path = xasprintf("%s/%s", argv[1], e->d_name);
        run_file(path, changes);
        free(path);
        files++;
    }
    closedir(dir);
    printf("%u files, %u changes to each\n", files, changes);
    return files ? 0 : 1;
}
