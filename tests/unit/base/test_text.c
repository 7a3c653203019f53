/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: strings grow without losing a byte; a log call is one line, whatever it
 * quotes, and only at the level that is wanted.
 * Method: standard error is a temporary file while a log line is written.
 */
#include "base/log.h"
#include "base/strbuf.h"
#include "unit.h"
#include <unistd.h>

static void a_string_grows(void **state)
{
    struct strbuf sb = STRBUF_INIT;

    assert_string_equal(strbuf_text(&sb), "");
    for (int i = 0; i < 1000; i++) {
        strbuf_addc(&sb, 'a');
        strbuf_add(&sb, "bc");
        strbuf_addf(&sb, "%03d", i);
        strbuf_addn(&sb, "dXX", 1);
    }
    assert_int_equal(sb.len, 7000);
    assert_int_equal(strlen(sb.text), 7000);
    assert_memory_equal(sb.text + 7 * 123, "abc123d", 7);
    strbuf_cut(&sb, 7);
    assert_string_equal(sb.text, "abc000d");
    strbuf_done(&sb);
    assert_string_equal(strbuf_text(&sb), "");
}

/* Around the first size, where the terminator is what does not fit. */
static void formatting_fits_at_every_length(void **state)
{
    for (int before = 0; before < 80; before++) {
        for (int n = 0; n < 150; n += 13) {
            CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

            strbuf_addf(&sb, "%*s", before, "");
            strbuf_addf(&sb, "%0*d", n + 1, 7);
            assert_int_equal(sb.len, before + n + 1);
            assert_int_equal(strlen(sb.text), sb.len);
            assert_int_equal(sb.text[sb.len - 1], '7');
        }
    }
}

static void steal_hands_over(void **state)
{
    struct strbuf sb = STRBUF_INIT;
    char *text = strbuf_steal(&sb);

    assert_string_equal(text, "");
    free(text);
    strbuf_add(&sb, "x");
    text = strbuf_steal(&sb);
    assert_string_equal(text, "x");
    assert_int_equal(sb.len, 0);
    free(text);
}

/* What standard error got from one line at @level. */
static void logged(char *out, size_t room, enum log_level level, const char *text)
{
    FILE *f = tmpfile();
    int saved = dup(STDERR_FILENO);

    assert_non_null(f);
    dup2(fileno(f), STDERR_FILENO);
    errno = ENOTTY;
    log_line(level, "%s", text);
    int after = errno;
    dup2(saved, STDERR_FILENO);
    close(saved);
    assert_int_equal(after, ENOTTY);
    ssize_t n = pread(fileno(f), out, room - 1, 0);
    assert_true(n >= 0);
    out[n] = '\0';
    fclose(f);
}

static void a_call_is_a_line(void **state)
{
    char out[4096], text[4000];

    logged(out, sizeof(out), LOG_LEVEL_INFO, "hello");
    assert_string_equal(out, "stillpoint: hello\n");
    logged(out, sizeof(out), LOG_LEVEL_ERROR, "a\nstillpoint: forged\x1b[2J");
    assert_string_equal(out, "stillpoint: error: a?stillpoint: forged?[2J\n");
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    logged(out, sizeof(out), LOG_LEVEL_WARN, text);
    assert_in_range(strlen(out), 1000, 2048);
    assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
}

static void the_level_is_kept(void **state)
{
    char out[256];
    int evaluated = 0;

    logged(out, sizeof(out), LOG_LEVEL_DEBUG, "x");
    assert_string_equal(out, "");
    log_debug("%d", evaluated++);
    assert_int_equal(evaluated, 0);
    log_set_level(LOG_LEVEL_DEBUG);
    logged(out, sizeof(out), LOG_LEVEL_DEBUG, "x");
    assert_string_equal(out, "stillpoint: debug: x\n");
    log_set_level(LOG_LEVEL_ERROR);
    logged(out, sizeof(out), LOG_LEVEL_WARN, "x");
    assert_string_equal(out, "");
    log_set_level(LOG_LEVEL_INFO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_string_grows),
        cmocka_unit_test(formatting_fits_at_every_length),
        cmocka_unit_test(steal_hands_over),
        cmocka_unit_test(a_call_is_a_line),
        cmocka_unit_test(the_level_is_kept),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
