/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: no text, however mangled, crashes, leaks or is accepted in two meanings.
 * Method: good texts with a few seeded edits: pieces cut out, doubled or moved,
 * single bytes replaced by ones that mean something. What decodes is encoded to
 * JSON, decoded again and must encode to the same; what does not must have an
 * error to tell.
 */
#include "schema_types.h"
#include "unit.h"

enum { ROUNDS = 20000, TEXT_MAX = 1024, EDITS_MAX = 4 };

static const struct {
    const struct schema_type *type;
    const char *text;
} good[] = {
    { &node_options_type, "driver=raw,file.driver=file,file.filename=a,,b,offset=64k" },
    { &node_options_type, "node-name=n,driver=file,filename=f,aio=native,read-only=on" },
    { &node_options_type, "{\"driver\":\"raw\",\"file\":{\"driver\":\"null\"},\"offset\":7}" },
    { &everything_type, "names.0=a,names.1=b,size=1.5M,number=-7,count=9,flag=off" },
    { &everything_type, "nodes.0.driver=null,nodes.1.driver=raw,nodes.1.file=n,any.x.y=1" },
    { &everything_type, "ref.driver=file,ref.filename=f,nested.filename=g,name=x" },
    { &everything_type, "{\"flag\":true,\"number\":-5,\"count\":10,\"size\":12,"
                        "\"name\":\"\\u00e4\","
                        "\"any\":{\"k\":[1.5,null]},\"names\":[\"a\",\"b\"],\"ref\":null}" },
    { &everything_type, "{\"nodes\":[{\"driver\":\"null\"},"
                        "{\"driver\":\"raw\",\"file\":\"n\"}]}" },
    { &shape_type, "kind=circle,radius=7" },
    { &shape_type, "{\"kind\":\"none\"}" },
};

/* Replace [at, at+del) by the @ins bytes at @bytes, as far as there is room. */
static void splice(char *text, size_t at, size_t del, const char *bytes, size_t ins)
{
    size_t len = strlen(text), tail = len - at - del;
    char copy[TEXT_MAX];

    if (len - del + ins >= TEXT_MAX)
        return;
    memcpy(copy, bytes, ins);
    memmove(text + at + ins, text + at + del, tail + 1);
    memcpy(text + at, copy, ins);
}

static void edit(struct random *rnd, char *text)
{
    static const char bytes[] = ",,..==::{}[]\"\"\\0019eEx- \xff\xc3\n";
    size_t len = strlen(text);
    size_t at = random_below(rnd, len + 1), n = random_below(rnd, MIN(len - at, (size_t)20) + 1);
    size_t to = random_below(rnd, len + 1);

    switch (random_below(rnd, 3)) {
    case 0:
        splice(text, at, n, "", 0);
        break;
    case 1:
        splice(text, to, 0, text + at, n);
        break;
    case 2:
        splice(text, at, n ? 1 : 0, &bytes[random_below(rnd, sizeof(bytes) - 1)], 1);
        break;
    }
}

/* Encode, decode what that gave, encode again: the same. */
static void assert_round_trip(const struct schema_type *type, const void *decoded)
{
    struct err err = ERR_INIT;
    json_t *first = schema_encode(type, decoded);
    void *again = schema_decode_new(type, first, false, &err);

    if (!again)
        print_error("%s\n", err.text);
    assert_non_null(again);
    json_t *second = schema_encode(type, again);
    assert_true(json_equal(first, second));
    schema_free(type, again);
    json_decref(first);
    json_decref(second);
}

static void edited_texts_are_decoded_or_refused(void **state)
{
    struct random rnd = { random_seed(6) };
    unsigned decoded = 0;

    for (int i = 0; i < ROUNDS; i++) {
        size_t pick = random_below(&rnd, ARRAY_SIZE(good));
        struct err err = ERR_INIT;
        char text[TEXT_MAX];
        bool keyval;

        strcpy(text, good[pick].text);
        for (uint64_t edits = random_below(&rnd, EDITS_MAX + 1); edits; edits--)
            edit(&rnd, text);

        json_t *in = schema_parse_text(text, NULL, &keyval, &err);
        void *out = in ? schema_decode_new(good[pick].type, in, keyval, &err) : NULL;

        if (out) {
            assert_round_trip(good[pick].type, out);
            decoded++;
        } else {
            assert_true(err.code < 0);
            assert_true(err.text[0]);
        }
        schema_free(good[pick].type, out);
        json_decref(in);
    }
    /* Both outcomes are exercised; the unedited ones alone are a fifth. */
    assert_in_range(decoded, ROUNDS / 5, ROUNDS * 4 / 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(edited_texts_are_decoded_or_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
