/* SPDX-License-Identifier: Apache-2.0
 *
 * The sidecar file's format: see format.h. Bytes from the file are looked at here, and
 * nowhere else.
 */
#include "sidecar/format.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/mem.h"
#include <inttypes.h>
#include <zlib.h>

#define MAGIC "STLPBITS"
#define VERSION 1u
#define BEAT_MAGIC 0x62656174u

/* Offsets in the header. */
enum {
    H_MAGIC = 0, H_VERSION = 8, H_CRC = 12, H_SEQ = 16, H_STATE = 24, H_N_STORAGES = 28,
    H_BOOT_ID = 32, H_DISK_SIZE = 48, H_REGION_SIZE = 56, H_DIR = 64, H_WRITTEN = 80,
    H_STORAGES = 88, STORAGE_BYTES = 64,
    H_KIND = H_STORAGES + NODE_STORAGES_MAX * STORAGE_BYTES,
    H_IMAGE = H_KIND + SIDECAR_KIND_MAX,
    H_REASON = H_IMAGE + SIDECAR_IMAGE_MAX,
    H_END = H_REASON + SIDECAR_REASON_MAX,
};
static_assert(H_END <= SIDECAR_BLOCK, "it fits");

/* A directory's entry: this, then the name and the reason, padded to 8 bytes. */
enum { E_AREA = 0, E_NBITS = 8, E_GRANULARITY = 16, E_CRC = 20, E_FLAGS = 24, E_NAME_LEN = 28,
       E_REASON_LEN = 30, E_BYTES = 32 };
#define ENTRY_ENABLED 1u

static uint32_t crc_of(const void *buf, size_t len)
{
    return (uint32_t)crc32_z(0, buf, len);
}

uint64_t sidecar_region_size(uint64_t disk_size)
{
    uint64_t size = SIDECAR_REGION_MIN;

    while (div_round_up(disk_size, size) > SIDECAR_REGIONS_AIM)
        size *= 2;
    return size;
}

/* ---- the header --------------------------------------------------------------- */

static void storage_encode(const struct storage_identity *id, uint8_t *p)
{
    store_be32(p, id->kind);
    store_be64(p + 8, id->dev);
    store_be64(p + 16, id->ino);
    store_be64(p + 24, id->size);
    store_be64(p + 32, (uint64_t)id->mtime_ns);
    store_be64(p + 40, (uint64_t)id->ctime_ns);
    store_be64(p + 48, id->diskseq);
    store_be64(p + 56, id->written);
}

static void storage_decode(const uint8_t *p, struct storage_identity *ret)
{
    *ret = (struct storage_identity){
        .kind = load_be32(p), .dev = load_be64(p + 8), .ino = load_be64(p + 16),
        .size = load_be64(p + 24), .mtime_ns = (int64_t)load_be64(p + 32),
        .ctime_ns = (int64_t)load_be64(p + 40), .diskseq = load_be64(p + 48),
        .written = load_be64(p + 56),
    };
}

void sidecar_header_encode(const struct sidecar_header *h, uint8_t *buf)
{
    memset(buf, 0, SIDECAR_BLOCK);
    memcpy(buf + H_MAGIC, MAGIC, 8);
    store_be32(buf + H_VERSION, VERSION);
    store_be64(buf + H_SEQ, h->seq);
    store_be32(buf + H_STATE, h->state);
    store_be32(buf + H_N_STORAGES, h->n_storages);
    memcpy(buf + H_BOOT_ID, h->boot_id, 16);
    store_be64(buf + H_DISK_SIZE, h->disk_size);
    store_be64(buf + H_REGION_SIZE, h->region_size);
    store_be32(buf + H_DIR, h->dir_slot);
    store_be32(buf + H_DIR + 4, h->dir_bytes);
    store_be32(buf + H_DIR + 8, h->dir_crc);
    store_be32(buf + H_DIR + 12, h->n_bitmaps);
    store_be64(buf + H_WRITTEN, (uint64_t)h->written_ns);
    for (unsigned i = 0; i < h->n_storages; i++)
        storage_encode(&h->storages[i], buf + H_STORAGES + i * STORAGE_BYTES);
    memcpy(buf + H_KIND, h->kind, SIDECAR_KIND_MAX);
    memcpy(buf + H_IMAGE, h->image, SIDECAR_IMAGE_MAX);
    memcpy(buf + H_REASON, h->reason, SIDECAR_REASON_MAX);
    store_be32(buf + H_CRC, crc_of(buf, SIDECAR_BLOCK));
}

static bool is_text(const uint8_t *p, size_t size)
{
    return memchr(p, 0, size) != NULL;
}

static bool check_sum(const uint8_t *buf, struct err *err)
{
    uint8_t copy[SIDECAR_BLOCK];

    if (memcmp(buf + H_MAGIC, MAGIC, 8) != 0)
        return err_set(err, -EINVAL, "it is no file of dirty bitmaps, or is damaged");
    memcpy(copy, buf, SIDECAR_BLOCK);
    store_be32(copy + H_CRC, 0);
    if (load_be32(buf + H_CRC) != crc_of(copy, SIDECAR_BLOCK))
        return err_set(err, -EINVAL, "its header is damaged");
    if (load_be32(buf + H_VERSION) != VERSION)
        return err_set(err, -ENOTSUP, "it is of version %u, and this program knows only %u",
                       load_be32(buf + H_VERSION), VERSION);
    return true;
}

bool sidecar_header_decode(const uint8_t *buf, struct sidecar_header *ret, struct err *err)
{
    struct sidecar_header h = { 0 };
    uint32_t state = load_be32(buf + H_STATE);

    if (!check_sum(buf, err))
        return false;
    h.seq = load_be64(buf + H_SEQ);
    h.state = (enum sidecar_state)state;
    h.n_storages = load_be32(buf + H_N_STORAGES);
    memcpy(h.boot_id, buf + H_BOOT_ID, 16);
    h.disk_size = load_be64(buf + H_DISK_SIZE);
    h.region_size = load_be64(buf + H_REGION_SIZE);
    h.dir_slot = load_be32(buf + H_DIR);
    h.dir_bytes = load_be32(buf + H_DIR + 4);
    h.dir_crc = load_be32(buf + H_DIR + 8);
    h.n_bitmaps = load_be32(buf + H_DIR + 12);
    h.written_ns = (int64_t)load_be64(buf + H_WRITTEN);
    if (state > SIDECAR_SPOILED || h.n_storages > NODE_STORAGES_MAX || h.disk_size > INT64_MAX ||
        !is_power_of_2(h.region_size) || h.region_size < SIDECAR_REGION_MIN ||
        div_round_up(h.disk_size, h.region_size) > SIDECAR_REGIONS_MAX || h.dir_slot > 1 ||
        h.dir_bytes > SIDECAR_DIR_BYTES || h.n_bitmaps > LIMIT_SIDECAR_BITMAPS ||
        !is_text(buf + H_KIND, SIDECAR_KIND_MAX) || !is_text(buf + H_IMAGE, SIDECAR_IMAGE_MAX) ||
        !is_text(buf + H_REASON, SIDECAR_REASON_MAX))
        return err_set(err, -EINVAL, "its header contradicts itself");
    for (unsigned i = 0; i < h.n_storages; i++)
        storage_decode(buf + H_STORAGES + i * STORAGE_BYTES, &h.storages[i]);
    memcpy(h.kind, buf + H_KIND, SIDECAR_KIND_MAX);
    memcpy(h.image, buf + H_IMAGE, SIDECAR_IMAGE_MAX);
    memcpy(h.reason, buf + H_REASON, SIDECAR_REASON_MAX);
    *ret = h;
    return true;
}

/* ---- the directory --------------------------------------------------------------- */

static size_t entry_bytes(const struct sidecar_entry *e)
{
    return align_up(E_BYTES + strlen(e->name) + strlen(e->reason), 8);
}

size_t sidecar_dir_bytes(const struct sidecar_entry *v, uint32_t n)
{
    size_t bytes = 0;

    static_assert(LIMIT_SIDECAR_BITMAPS * (E_BYTES + DIRTY_NAME_MAX + SIDECAR_REASON_MAX + 8) <=
                  SIDECAR_DIR_BYTES, "they fit");
    for (uint32_t i = 0; i < n; i++)
        bytes += entry_bytes(&v[i]);
    return bytes;
}

void sidecar_dir_encode(const struct sidecar_entry *v, uint32_t n, uint8_t *buf,
                        struct sidecar_header *h)
{
    size_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct sidecar_entry *e = &v[i];
        size_t name_len = strlen(e->name), reason_len = strlen(e->reason);
        uint8_t *p = buf + at;

        memset(p, 0, entry_bytes(e));
        store_be64(p + E_AREA, e->area);
        store_be64(p + E_NBITS, e->nbits);
        store_be32(p + E_GRANULARITY, e->granularity);
        store_be32(p + E_CRC, e->crc);
        store_be32(p + E_FLAGS, e->enabled ? ENTRY_ENABLED : 0);
        store_be16(p + E_NAME_LEN, (uint16_t)name_len);
        store_be16(p + E_REASON_LEN, (uint16_t)reason_len);
        memcpy(p + E_BYTES, e->name, name_len);
        memcpy(p + E_BYTES + name_len, e->reason, reason_len);
        at += entry_bytes(e);
    }
    h->dir_bytes = (uint32_t)at;
    h->dir_crc = crc_of(buf, at);
    h->n_bitmaps = n;
}

static bool entry_decode(const struct sidecar_header *h, const uint8_t *p, size_t left,
                         struct sidecar_entry *ret, size_t *ret_bytes)
{
    size_t name_len, reason_len;

    if (left < E_BYTES)
        return false;
    name_len = load_be16(p + E_NAME_LEN);
    reason_len = load_be16(p + E_REASON_LEN);
    if (!name_len || name_len > DIRTY_NAME_MAX || reason_len >= SIDECAR_REASON_MAX ||
        align_up(E_BYTES + name_len + reason_len, 8) > left)
        return false;
    *ret = (struct sidecar_entry){
        .area = load_be64(p + E_AREA), .nbits = load_be64(p + E_NBITS),
        .granularity = load_be32(p + E_GRANULARITY), .crc = load_be32(p + E_CRC),
        .enabled = load_be32(p + E_FLAGS) & ENTRY_ENABLED,
    };
    memcpy(ret->name, p + E_BYTES, name_len);
    memcpy(ret->reason, p + E_BYTES + name_len, reason_len);
    *ret_bytes = align_up(E_BYTES + name_len + reason_len, 8);
    return strlen(ret->name) == name_len && strlen(ret->reason) == reason_len &&
           is_power_of_2(ret->granularity) && ret->granularity >= DIRTY_GRANULARITY_MIN &&
           ret->granularity <= DIRTY_GRANULARITY_MAX &&
           ret->nbits == div_round_up(h->disk_size, ret->granularity) &&
           sidecar_area_bytes(ret->nbits) <= LIMIT_SIDECAR_AREA_BYTES &&
           ret->area >= SIDECAR_AREAS_AT && is_aligned(ret->area, SIDECAR_BLOCK) &&
           ret->area <= INT64_MAX - LIMIT_SIDECAR_AREA_BYTES;
}

/* Whether it has nothing in common with those before it. */
static bool is_apart(const struct sidecar_entry *v, uint32_t n)
{
    const struct sidecar_entry *e = &v[n];

    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(v[i].name, e->name) == 0 ||
            (e->area < v[i].area + sidecar_area_bytes(v[i].nbits) &&
             v[i].area < e->area + sidecar_area_bytes(e->nbits)))
            return false;
    }
    return true;
}

bool sidecar_dir_decode(const struct sidecar_header *h, const uint8_t *buf,
                        struct sidecar_entry **ret, struct err *err)
{
    CLEANUP(free) struct sidecar_entry *v = xcalloc(h->n_bitmaps + 1, sizeof(*v));
    size_t at = 0, bytes = 0;

    if (crc_of(buf, h->dir_bytes) != h->dir_crc)
        return err_set(err, -EINVAL, "its directory is damaged");
    for (uint32_t i = 0; i < h->n_bitmaps; i++, at += bytes) {
        if (!entry_decode(h, buf + at, h->dir_bytes - at, &v[i], &bytes) || !is_apart(v, i))
            return err_set(err, -EINVAL, "its directory contradicts itself");
    }
    *ret = MOVE(v);
    return true;
}

/* ---- log and beat ------------------------------------------------------------------ */

/* A sector: a checksum of the rest, 4 bytes zero, the bits. */
void sidecar_log_encode(const struct bitmap *marked, unsigned i, uint8_t *buf)
{
    uint64_t first = i * (uint64_t)SIDECAR_SECTOR_REGIONS / 64, word;

    static_assert(SIDECAR_SECTOR_REGIONS % 64 == 0, "whole words");
    memset(buf, 0, SIDECAR_SECTOR);
    for (unsigned k = 0; k < SIDECAR_SECTOR_REGIONS / 64; k++) {
        bitmap_get_words(marked, first + k, 1, &word);
        store_be64(buf + 8 + k * 8, word);
    }
    store_be32(buf, crc_of(buf + 4, SIDECAR_SECTOR - 4));
}

void sidecar_log_decode(const uint8_t *buf, unsigned i, struct bitmap *marked)
{
    uint64_t first = i * (uint64_t)SIDECAR_SECTOR_REGIONS / 64;
    bool good = load_be32(buf) == crc_of(buf + 4, SIDECAR_SECTOR - 4);

    for (unsigned k = 0; k < SIDECAR_SECTOR_REGIONS / 64; k++) {
        uint64_t word = good ? load_be64(buf + 8 + k * 8) : ~0ULL;

        bitmap_add_words(marked, first + k, 1, &word);
    }
}

void sidecar_beat_encode(const struct sidecar_beat *b, uint8_t *buf)
{
    memset(buf, 0, SIDECAR_SECTOR);
    store_be32(buf, BEAT_MAGIC);
    store_be64(buf + 8, (uint64_t)b->time_ns);
    memcpy(buf + 16, b->boot_id, 16);
    store_be32(buf + 4, crc_of(buf + 8, SIDECAR_SECTOR - 8));
}

bool sidecar_beat_decode(const uint8_t *buf, struct sidecar_beat *ret)
{
    if (load_be32(buf) != BEAT_MAGIC ||
        load_be32(buf + 4) != crc_of(buf + 8, SIDECAR_SECTOR - 8))
        return false;
    ret->time_ns = (int64_t)load_be64(buf + 8);
    memcpy(ret->boot_id, buf + 16, 16);
    return ret->time_ns >= 0 && ret->time_ns <= INT64_MAX / 2;
}

/* ---- bits -------------------------------------------------------------------------- */

void sidecar_block_encode(const uint64_t *words, uint8_t *buf)
{
    for (unsigned i = 0; i < SIDECAR_BLOCK_WORDS; i++) {
        uint64_t word = htole64(words[i]);

        memcpy(buf + 8 * i, &word, 8);
    }
}

void sidecar_block_decode(const uint8_t *buf, struct bitmap *bits, uint64_t block)
{
    uint64_t words[SIDECAR_BLOCK_WORDS];

    memcpy(words, buf, sizeof(words));
    for (unsigned i = 0; i < SIDECAR_BLOCK_WORDS; i++)
        words[i] = le64toh(words[i]);
    bitmap_add_words(bits, block * SIDECAR_BLOCK_WORDS, SIDECAR_BLOCK_WORDS, words);
}

uint32_t sidecar_bits_crc(const struct bitmap *bits)
{
    uint64_t size = bitmap_size(bits), words[SIDECAR_BLOCK_WORDS];
    uint8_t buf[SIDECAR_BLOCK], number[8];
    uLong crc = 0;

    for (uint64_t bit = 0; (bit = bitmap_next_set(bits, bit)) < size;) {
        uint64_t block = bit / SIDECAR_BLOCK_BITS;

        bitmap_get_words(bits, block * SIDECAR_BLOCK_WORDS, SIDECAR_BLOCK_WORDS, words);
        sidecar_block_encode(words, buf);
        store_be64(number, block);
        crc = crc32_z(crc, number, sizeof(number));
        crc = crc32_z(crc, buf, sizeof(buf));
        bit = MIN((block + 1) * SIDECAR_BLOCK_BITS, size);
    }
    return (uint32_t)crc;
}
