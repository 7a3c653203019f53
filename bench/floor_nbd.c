/* SPDX-License-Identifier: Apache-2.0
 *
 * The floor of serving a file over NBD with one thread: receive what has come, pread or
 * pwrite, send the answers of all of it in one call, and nothing else. It never
 * sleeps, checks nothing, and serves one file to a client that behaves. What no server with
 * one thread a disk can be much faster than.
 */
#include <endian.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_REQUEST (1 << 20)
#define IN_BYTES (2 * (MAX_REQUEST + 28))
#define MAX_BATCH 64

struct __attribute__((packed)) request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, off;
    uint32_t len;
};

struct __attribute__((packed)) reply {
    uint32_t magic, error;
    uint64_t cookie;
};

static int disk;
static uint64_t disk_size;

static void give_up(const char *what)
{
    perror(what);
    _exit(1);
}

static void get(int s, void *buf, size_t len)
{
    if (len && recv(s, buf, len, MSG_WAITALL) != (ssize_t)len)
        _exit(0);
}

static void put(int s, const void *buf, size_t len)
{
    if (send(s, buf, len, MSG_NOSIGNAL) != (ssize_t)len)
        _exit(0);
}

/* ---- negotiation ------------------------------------------------------------- */

static void put_option_reply(int s, uint32_t option, uint32_t type, const void *data, uint32_t len)
{
    struct __attribute__((packed)) { uint64_t magic; uint32_t option, type, len; } head = {
        htobe64(0x3e889045565a9), htobe32(option), htobe32(type), htobe32(len) };

    put(s, &head, sizeof(head));
    if (len)
        put(s, data, len);
}

/* Until the client has chosen its export. */
static void negotiate(int s)
{
    struct __attribute__((packed)) { uint64_t magic, option_magic; uint16_t flags; } hello = {
        htobe64(0x4e42444d41474943), htobe64(0x49484156454f5054), htobe16(3) };
    struct __attribute__((packed)) { uint16_t type; uint64_t size; uint16_t flags; } info = {
        0, htobe64(disk_size), htobe16(5) };
    struct __attribute__((packed)) { uint64_t magic; uint32_t option, len; } head;
    static char data[65536];
    uint32_t flags;

    put(s, &hello, sizeof(hello));
    get(s, &flags, sizeof(flags));
    for (;;) {
        get(s, &head, sizeof(head));
        get(s, data, be32toh(head.len) % sizeof(data));
        switch (be32toh(head.option)) {
        case 7:                              /* NBD_OPT_GO */
            put_option_reply(s, 7, 3, &info, sizeof(info));
            put_option_reply(s, 7, 1, NULL, 0);
            return;
        case 2:                              /* NBD_OPT_ABORT */
            put_option_reply(s, 2, 1, NULL, 0);
            _exit(0);
        default:
            put_option_reply(s, be32toh(head.option), 0x80000001, NULL, 0);
        }
    }
}

/* ---- requests ------------------------------------------------------------------ */

static char in[IN_BYTES], data[MAX_BATCH * MAX_REQUEST / 8];
static size_t in_len, data_len;
static struct reply replies[MAX_BATCH];
static struct iovec out[2 * MAX_BATCH];
static unsigned n_replies, n_out;

static void flush_replies(int s)
{
    struct iovec *v = out;

    while (n_out) {
        ssize_t sent = sendmsg(s, &(struct msghdr){ .msg_iov = v, .msg_iovlen = n_out },
                               MSG_NOSIGNAL);

        if (sent < 0)
            _exit(0);
        while (n_out && (size_t)sent >= v->iov_len) {
            sent -= v->iov_len;
            v++;
            n_out--;
        }
        if (n_out) {
            v->iov_base = (char *)v->iov_base + sent;
            v->iov_len -= sent;
        }
    }
    n_replies = 0;
    data_len = 0;
}

static void serve_one(int s, const struct request *rq)
{
    uint32_t len = be32toh(rq->len);
    uint64_t off = be64toh(rq->off);
    uint16_t type = be16toh(rq->type);

    if (len > MAX_REQUEST)
        _exit(1);
    if (n_replies == MAX_BATCH || data_len + len > sizeof(data))
        flush_replies(s);
    replies[n_replies] = (struct reply){ htobe32(0x67446698), 0, rq->cookie };
    out[n_out++] = (struct iovec){ &replies[n_replies++], sizeof(struct reply) };
    if (type == 0) {
        if (pread(disk, data + data_len, len, off) != len)
            give_up("pread");
        out[n_out++] = (struct iovec){ data + data_len, len };
        data_len += len;
    } else if (type == 1 && pwrite(disk, rq + 1, len, off) != len) {
        give_up("pwrite");
    } else if (type == 2) {
        _exit(0);
    }
}

static void serve(int s)
{
    for (;;) {
        ssize_t got = recv(s, in + in_len, sizeof(in) - in_len, MSG_DONTWAIT);
        size_t at = 0;

        if (got == 0)
            return;
        in_len += got > 0 ? got : 0;
        while (in_len - at >= sizeof(struct request)) {
            const struct request *rq = (const void *)(in + at);
            size_t whole = sizeof(*rq) + (be16toh(rq->type) == 1 ? be32toh(rq->len) : 0);

            if (in_len - at < whole)
                break;
            serve_one(s, rq);
            at += whole;
        }
        flush_replies(s);
        memmove(in, in + at, in_len - at);
        in_len -= at;
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    struct stat st;

    if (argc != 3)
        return 2;
    disk = open(argv[1], O_RDWR);
    if (disk < 0 || fstat(disk, &st) < 0)
        give_up(argv[1]);
    disk_size = st.st_size;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", argv[2]);
    if (bind(s, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(s, 8) < 0)
        give_up(argv[2]);
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int client = accept(s, NULL, NULL);

        if (client < 0)
            give_up("accept");
        if (fork() == 0) {
            negotiate(client);
            serve(client);
            return 0;
        }
        close(client);
    }
}
