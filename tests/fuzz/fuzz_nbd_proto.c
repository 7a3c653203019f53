/* SPDX-License-Identifier: Apache-2.0
 *
 * Rubbish for the NBD parsers: the same bytes as an option's data, as headers
 * and as requests one after the other. What is accepted must lie inside the
 * input and keep the funnel's promise.
 */
#include "base/limits.h"
#include "export/nbd/request.h"
#include "fuzz.h"

static void check_inside(const struct nbd_str *s, const uint8_t *data, size_t size)
{
    const uint8_t *p = (const uint8_t *)s->p;

    assert(p >= data && p <= data + size && s->len <= (size_t)(data + size - p));
    assert(s->len <= LIMIT_NBD_STRING_BYTES);
}

static void option_data(const uint8_t *data, size_t size)
{
    const char *why = NULL;
    struct nbd_meta m;
    struct nbd_go go;

    if (nbd_get_go(data, size, &go, &why)) {
        check_inside(&go.name, data, size);
        (void)nbd_go_asks(&go, NBD_INFO_BLOCK_SIZE);
    } else {
        assert(why);
    }
    if (!nbd_get_meta(data, size, &m, &why)) {
        assert(why);
        return;
    }
    check_inside(&m.name, data, size);
    assert(m.n_queries <= size / 4);
    for (uint32_t i = 0; i < m.n_queries; i++) {
        struct nbd_str q = nbd_next_query(&m);

        check_inside(&q, data, size);
    }
    assert(m.next == data + size);
}

static void requests(const uint8_t *data, size_t size)
{
    struct nbd_session s = {
        .size = size * MiB + size, .writable = true, .structured = true, .contexts = 1,
    };
    struct nbd_request rq;

    for (; size >= NBD_REQUEST_BYTES; data += NBD_REQUEST_BYTES, size -= NBD_REQUEST_BYTES) {
        const char *why = NULL;

        if (!nbd_get_request(data, &rq))
            continue;
        if (nbd_check_request(&rq, &s, &why) < 0) {
            assert(why);
            continue;
        }
        assert(rq.length <= s.size && rq.offset <= s.size - rq.length);
        assert(nbd_request_buffer(&rq, &s) <= LIMIT_NBD_REQUEST_BYTES);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t option, len;

    if (size >= NBD_OPTION_BYTES && nbd_get_option(data, &option, &len))
        option_data(data + NBD_OPTION_BYTES, size - NBD_OPTION_BYTES);
    option_data(data, size);
    requests(data, size);
    return 0;
}
