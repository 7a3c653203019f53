/* SPDX-License-Identifier: Apache-2.0
 *
 * Rubbish for a monitor: the stream is cut into texts, the texts are parsed, and
 * what is a command has its arguments decoded and encoded again, all but run.
 * The same bytes are then taken for an option of the command line.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/drivers.h"
#include "fuzz.h"
#include "qmp/impl.h"
#include "qmp/json_stream.h"

static void decode(const struct qmp_command *c, const json_t *args, bool keyval)
{
    struct err err = ERR_INIT;
    void *out = c->args ? schema_decode_new(c->args, args, keyval, &err) : NULL;

    if (!out) {
        assert(!c->args || err.code < 0);
        return;
    }
    json_decref(schema_encode(c->args, out));
    schema_free(c->args, out);
}

static void take_text(const char *text, size_t len)
{
    struct err err = ERR_INIT;
    json_t *message = schema_parse_json(text, len, &err);

    if (!message) {
        assert(strncmp(err.text, "JSON parse error, ", 18) == 0);
        return;
    }

    const char *name = json_string_value(json_object_get(message, "execute"));
    const struct qmp_command *c = name ? qmp_command_find(name) : NULL;
    const json_t *args = json_object_get(message, "arguments");

    if (c && json_is_object(args))
        decode(c, args, false);
    json_decref(message);
}

static void take_stream(const char *bytes, size_t len)
{
    struct json_stream js = JSON_STREAM_INIT;

    while (len) {
        size_t taken;
        enum json_stream_state s = json_stream_feed(&js, bytes, len, &taken);

        assert(taken <= len && js.text.len <= LIMIT_QMP_INPUT + 2);
        bytes += taken;
        len -= taken;
        if (s != JSON_STREAM_VALUE)
            break;
        assert(js.text.len);
        take_text(strbuf_text(&js.text), js.text.len);
        json_stream_next(&js);
    }
    json_stream_done(&js);
}

static void take_option(const char *bytes, size_t len)
{
    CLEANUP(free) char *text = xstrndup(bytes, len);
    struct err err = ERR_INIT;
    bool keyval;
    json_t *json = schema_parse_text(text, "driver", &keyval, &err);

    if (!json) {
        assert(err.code < 0);
        return;
    }
    decode(qmp_command_find("blockdev-add"), json, keyval);
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool registered;

    if (!registered)
        drivers_register_all();
    registered = true;
    take_stream((const char *)data, size);
    take_option((const char *)data, size);
    return 0;
}
