/* SPDX-License-Identifier: Apache-2.0
 *
 * The seeded model: see model.h.
 *
 *   model_backup [--engine uring|pool|auto] [--seeds A..B | --seed N] [--for SECONDS]
 *                [--chains] [--dir DIR] [--peers] [--verbose]
 *
 * Exit status 0 when every seed passed, 1 with the seed on standard error, 77 when
 * the engine cannot be had here.
 */
#include "model.h"
#include "base/mem.h"
#include "drivers/drivers.h"
#include <dirent.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct settings {
    enum loop_engine engine;
    uint64_t first, last;
    unsigned seconds;            /* 0: as long as there are seeds */
    const char *dir;
    bool peers, verbose, chains;
};

void model_fail(struct model *m, const char *fmt, ...)
{
    va_list ap;

    fflush(stdout);
    fprintf(stderr, "seed %ju: ", (uintmax_t)m->seed);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nimages are in %s; repeat with --seed %ju\n", m->dir, (uintmax_t)m->seed);
    fflush(stderr);
    _exit(1);
}

/* splitmix64 */
uint64_t model_random(struct model *m, uint64_t n)
{
    uint64_t z = (m->rng += 0x9e3779b97f4a7c15ULL);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    z ^= z >> 31;
    return n ? z % n : 0;
}

/* ---- one seed ------------------------------------------------------------------------ */

struct backup_crew {
    struct model *m;
    unsigned left, next;
    struct waitq done;
};

static void co_backups(void *arg)
{
    struct backup_crew *c = arg;
    unsigned rounds = 1 + model_random(c->m, 3);

    while (rounds--)
        co_model_backup(c->m, c->next++);
    c->left--;
    waitq_wake_all(&c->done);
}

static void co_chain(void *arg)
{
    struct backup_crew *c = arg;

    co_model_chain(c->m, c->next++);
    c->left--;
    waitq_wake_all(&c->done);
}

static void start_backups(struct model *m, struct backup_crew *c)
{
    unsigned chains = m->chains ? 1 + model_random(m, 2) : 0;
    unsigned others = m->chains ? model_random(m, 2) : 1 + model_random(m, 2);

    c->left = chains + others;
    while (chains--)
        co_start(co_chain, c);
    while (others--)
        co_start(co_backups, c);
}

static void count_node(struct node *n, void *arg)
{
    ++*(unsigned *)arg;
}

/* Pieces that hung end in their own time. */
static void co_wait_for_nodes(struct model *m)
{
    uint64_t deadline = loop_now() + 10 * NSEC_PER_SEC;
    unsigned n;

    do {
        co_sleep(NSEC_PER_MSEC);
        n = 0;
        node_for_each(count_node, &n);
    } while (n && loop_now() < deadline);
    if (n)
        model_fail(m, "%u nodes are left", n);
}

static void co_seed(void *arg)
{
    struct model *m = arg;
    struct image source = { 0 }, backing = { 0 };
    struct backup_crew crew = { .m = m };
    uint8_t *end;

    list_init(&m->writing);
    list_init(&m->watches);
    waitq_init(&m->go);
    waitq_init(&m->still);
    waitq_init(&crew.done);
    co_guest_begin(m, &source, &backing);
    guest_start_writers(m, 1 + model_random(m, 6));
    start_backups(m, &crew);
    while (crew.left)
        co_waitq_wait(&crew.done);
    m->stop = true;
    while (m->writers)
        co_waitq_wait(&m->still);

    end = co_guest_read(m);
    shadow_expect(m, &m->now, end, "the source at the end");
    free(end);
    if (m->longest_ns > (m->limited ? 20 : 2) * NSEC_PER_SEC)
        model_fail(m, "a guest waited %ju ms", (uintmax_t)(m->longest_ns / NSEC_PER_MSEC));
    disk_close(m->guest);
    co_image_close(&source);
    co_wait_for_nodes(m);
    shadow_free(&m->now);
    image_delete(&source);
    if (m->backing[0])
        image_delete(&backing);
    loop_stop(loop_current());
}

static void start_seed(void *arg)
{
    co_start(co_seed, arg);
}

static void run_seed(const struct settings *s, uint64_t seed, const char *dir,
                     struct model *sums)
{
    struct err err = ERR_INIT;
    struct model m = { .seed = seed, .rng = seed, .dir = dir, .peers = s->peers,
                       .verbose = s->verbose, .chains = s->chains };
    struct loop *loop = loop_new(s->engine, "model", &err);

    if (!loop)
        model_fail(&m, "%s", err.text);
    if (s->verbose)
        printf("seed %ju\n", (uintmax_t)seed);
    loop_post(loop, start_seed, &m);
    loop_run(loop);
    loop_free(loop);
    if (s->verbose)
        printf("  a guest waited %ju ms at most\n", (uintmax_t)(m.longest_ns / NSEC_PER_MSEC));
    sums->passed += m.passed;
    sums->failed += m.failed;
    sums->cancelled += m.cancelled;
    sums->longest_ns = MAX(sums->longest_ns, m.longest_ns);
}

/* ---- main -------------------------------------------------------------------------------- */

static void usage(void)
{
    fprintf(stderr, "usage: model_backup [--engine uring|pool|auto] [--seeds A..B | --seed N] "
            "[--for SECONDS] [--chains] [--dir DIR] [--peers] [--verbose]\n");
    exit(2);
}

static enum loop_engine parse_engine(const char *name)
{
    if (!strcmp(name, "uring"))
        return LOOP_ENGINE_URING;
    if (!strcmp(name, "pool"))
        return LOOP_ENGINE_POOL;
    if (strcmp(name, "auto"))
        usage();
    return LOOP_ENGINE_AUTO;
}

static void parse_seeds(struct settings *s, const char *text)
{
    char *end;

    s->first = s->last = strtoull(text, &end, 0);
    if (!strncmp(end, "..", 2))
        s->last = strtoull(end + 2, &end, 0);
    if (*end || s->last < s->first)
        usage();
}

static void parse(struct settings *s, int argc, char **argv)
{
    static const struct option options[] = {
        { "engine", required_argument, NULL, 'e' }, { "seeds", required_argument, NULL, 's' },
        { "seed", required_argument, NULL, 's' },   { "for", required_argument, NULL, 'f' },
        { "dir", required_argument, NULL, 'd' },    { "peers", no_argument, NULL, 'p' },
        { "verbose", no_argument, NULL, 'v' },      { "chains", no_argument, NULL, 'c' },
        { 0 },
    };
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
        switch (c) {
        case 'e':
            s->engine = parse_engine(optarg);
            break;
        case 's':
            parse_seeds(s, optarg);
            break;
        case 'f':
            s->seconds = strtoul(optarg, NULL, 0);
            break;
        case 'd':
            s->dir = optarg;
            break;
        case 'p':
            s->peers = true;
            break;
        case 'c':
            s->chains = true;
            break;
        case 'v':
            s->verbose = true;
            break;
        default:
            usage();
        }
    }
}

int main(int argc, char **argv)
{
    struct stat st;
    struct settings s = {
        .first = 1,
        .last = 100,
        .dir = stat("/dev/shm", &st) == 0 ? "/dev/shm" : "/var/tmp",
    };
    struct model sums = { 0 };
    struct err err = ERR_INIT;
    uint64_t seed;

    parse(&s, argc, argv);
    char *dir = xasprintf("%s/stillpoint-model-XXXXXX", s.dir);

    if (!mkdtemp(dir)) {
        perror(dir);
        return 1;
    }
    struct loop *probe = loop_new(s.engine, "probe", &err);

    if (!probe) {
        fprintf(stderr, "skipped: %s\n", err.text);
        rmdir(dir);
        return 77;
    }
    loop_free(probe);
    drivers_register_all();
    uint64_t until = s.seconds ? loop_now() + s.seconds * NSEC_PER_SEC : UINT64_MAX;

    for (seed = s.first; seed <= s.last && loop_now() < until; seed++)
        run_seed(&s, seed, dir, &sums);
    printf("seeds %ju..%ju: %u backups right, %u failed as they should, %u cancelled; a guest "
           "waited %ju ms at most\n", (uintmax_t)s.first, (uintmax_t)seed - 1, sums.passed,
           sums.failed, sums.cancelled, (uintmax_t)(sums.longest_ns / NSEC_PER_MSEC));
    rmdir(dir);
    free(dir);
    return 0;
}
