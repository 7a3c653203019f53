/* SPDX-License-Identifier: Apache-2.0
 *
 * libdeflate does deflate, both ways, several times as fast as zlib. It wants
 * streams that end where they should; the few that do not are left to zlib, so that
 * whatever QEMU reads is read. The format asks for RFC 1951 and no more: the window
 * may be all of its 32 KiB, also for readers that set up a smaller one (QEMU), as
 * long as they unpack a cluster in one call.
 */
#include "drivers/qcow2/codec.h"
#include "base/mem.h"
#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>

/* Packs better than zlib's default, in less than half of its time. */
#define DEFLATE_LEVEL 6
/* Of programs and text about 5 % larger than with zstd's default, 3, and half as much
 * again as fast: whoever chooses zstd is in a hurry. */
#define ZSTD_LEVEL 1

/* The window that a zstd frame may ask for is memory that the image takes from us:
 * four times the largest cluster is more than any encoder wants for one. */
#define ZSTD_WINDOW_LOG_MAX 23

struct qcow2_codec {
    /* Each made when it is needed. */
    struct libdeflate_compressor *deflate;
    struct libdeflate_decompressor *inflate;
    ZSTD_CCtx *zstd;
    ZSTD_DCtx *unzstd;
};

struct qcow2_codec *qcow2_codec_new(void)
{
    return xnew(struct qcow2_codec);
}

void qcow2_codec_free(struct qcow2_codec *c)
{
    if (!c)
        return;
    libdeflate_free_compressor(c->deflate);
    libdeflate_free_decompressor(c->inflate);
    ZSTD_freeCCtx(c->zstd);
    ZSTD_freeDCtx(c->unzstd);
    free(c);
}

/* ---- packing ------------------------------------------------------------- */

static int64_t pack_deflate(struct qcow2_codec *c, const void *data, size_t len, void *out,
                            size_t room)
{
    if (!c->deflate)
        c->deflate = libdeflate_alloc_compressor(DEFLATE_LEVEL);
    if (!c->deflate)
        return -ENOMEM;
    return (int64_t)libdeflate_deflate_compress(c->deflate, data, len, out, room);
}

static int64_t pack_zstd(struct qcow2_codec *c, const void *data, size_t len, void *out,
                         size_t room)
{
    size_t n;

    if (!c->zstd)
        c->zstd = ZSTD_createCCtx();
    if (!c->zstd)
        return -ENOMEM;
    n = ZSTD_compressCCtx(c->zstd, out, room, data, len, ZSTD_LEVEL);
    return ZSTD_isError(n) ? 0 : (int64_t)n;
}

int64_t qcow2_codec_pack(struct qcow2_codec *c, enum qcow2_compression type, const void *data,
                         size_t len, void *out, size_t room)
{
    return type == QCOW2_COMPRESSION_ZSTD ? pack_zstd(c, data, len, out, room)
                                          : pack_deflate(c, data, len, out, room);
}

/* ---- unpacking ----------------------------------------------------------- */

/* A stream of more data than a cluster, or without its end mark. */
static int unpack_odd_deflate(const void *packed, size_t bytes, void *out, size_t len)
{
    z_stream z = {
        .next_in = (void *)packed, .avail_in = (uInt)bytes,
        .next_out = out, .avail_out = (uInt)len,
    };
    int r = inflateInit2(&z, -15);

    if (r != Z_OK)
        return -ENOMEM;
    r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    /* Z_BUF_ERROR: the end mark did not fit into what the entry says. */
    return z.avail_out == 0 && (r == Z_STREAM_END || r == Z_BUF_ERROR) ? 0 : -EIO;
}

static int unpack_deflate(struct qcow2_codec *c, const void *packed, size_t bytes, void *out,
                          size_t len)
{
    size_t used;

    if (!c->inflate)
        c->inflate = libdeflate_alloc_decompressor();
    if (!c->inflate)
        return -ENOMEM;
    /* Without a place for the length it must be exactly @len. */
    if (libdeflate_deflate_decompress_ex(c->inflate, packed, bytes, out, len, &used, NULL) ==
        LIBDEFLATE_SUCCESS)
        return 0;
    return unpack_odd_deflate(packed, bytes, out, len);
}

static int unpack_zstd(struct qcow2_codec *c, const void *packed, size_t bytes, void *out,
                       size_t len)
{
    ZSTD_inBuffer in = { packed, bytes, 0 };
    ZSTD_outBuffer to = { out, len, 0 };

    if (!c->unzstd)
        c->unzstd = ZSTD_createDCtx();
    if (!c->unzstd)
        return -ENOMEM;
    if (ZSTD_isError(ZSTD_DCtx_reset(c->unzstd, ZSTD_reset_session_and_parameters)) ||
        ZSTD_isError(ZSTD_DCtx_setParameter(c->unzstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX)))
        return -EIO;
    while (to.pos < to.size) {
        size_t in_was = in.pos, out_was = to.pos;

        if (ZSTD_isError(ZSTD_decompressStream(c->unzstd, &to, &in)) ||
            (in.pos == in_was && to.pos == out_was))
            return -EIO;
    }
    return 0;
}

int qcow2_codec_unpack(struct qcow2_codec *c, enum qcow2_compression type, const void *packed,
                       size_t bytes, void *out, size_t len)
{
    return type == QCOW2_COMPRESSION_ZSTD ? unpack_zstd(c, packed, bytes, out, len)
                                          : unpack_deflate(c, packed, bytes, out, len);
}
