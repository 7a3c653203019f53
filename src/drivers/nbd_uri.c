/* SPDX-License-Identifier: Apache-2.0
 *
 * NBD URIs: see nbd_uri.h.
 */
#include "drivers/nbd_uri.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include <ctype.h>

/* The parts of a URI, still encoded; each NULL if absent. Cut out of @text. */
struct parts {
    char *text;
    char *scheme, *authority, *path, *query;
};

/* scheme "://" authority "/" path "?" query (RFC 3986, section 3) */
static bool split(const char *uri, struct parts *p, struct err *err)
{
    p->text = xstrdup(uri);
    if (strchr(p->text, '#'))
        return err_set(err, -EINVAL, "NBD URI '%s': a fragment ('#') has no meaning", uri);
    p->query = strchr(p->text, '?');
    if (p->query)
        *p->query++ = '\0';

    char *rest = strstr(p->text, "://");

    if (!rest)
        return err_set(err, -EINVAL, "'%s' is not an NBD URI: it has no '://'", uri);
    *rest = '\0';
    p->scheme = p->text;
    p->authority = rest + 3;
    p->path = strchr(p->authority, '/');
    if (p->path)
        *p->path++ = '\0';
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Undo percent-encoding in place. */
static bool decode(char *s, const char *uri, struct err *err)
{
    char *to = s;

    if (!s)
        return true;
    for (; *s; s++) {
        if (*s != '%') {
            *to++ = *s;
            continue;
        }
        int hi = hex_digit(s[1]), lo = hi < 0 ? -1 : hex_digit(s[2]);

        if (lo < 0 || hi * 16 + lo == 0)
            return err_set(err, -EINVAL, "NBD URI '%s': '%%' must be followed by two hexadecimal "
                           "digits other than 00", uri);
        *to++ = (char)(hi * 16 + lo);
        s += 2;
    }
    *to = '\0';
    return true;
}

/* The only parameter is "socket". */
static bool parse_query(char *query, char **ret_socket, const char *uri, struct err *err)
{
    char *save = NULL;

    if (!query)
        return true;
    for (char *p = strtok_r(query, "&", &save); p; p = strtok_r(NULL, "&", &save)) {
        if (strncmp(p, "socket=", 7) != 0)
            return err_set(err, -EINVAL, "NBD URI '%s': parameter '%s' is not supported", uri, p);
        if (*ret_socket)
            return err_set(err, -EINVAL, "NBD URI '%s': two sockets", uri);
        *ret_socket = p + 7;
    }
    return decode(*ret_socket, uri, err);
}

/* host [":" port], an IPv6 address in brackets */
static bool parse_authority(char *a, const char **ret_host, const char **ret_port, const char *uri,
                            struct err *err)
{
    char *colon;

    if (strchr(a, '@'))
        return err_set(err, -EINVAL, "NBD URI '%s': user names are not supported", uri);
    if (*a == '[') {
        char *end = strchr(a, ']');

        if (!end || (end[1] && end[1] != ':'))
            return err_set(err, -EINVAL, "NBD URI '%s': bad IPv6 address", uri);
        colon = end[1] ? end + 1 : NULL;
        *end = '\0';
        a++;
    } else {
        colon = strchr(a, ':');
    }
    if (colon)
        *colon++ = '\0';
    *ret_host = *a ? a : "localhost";
    *ret_port = colon && *colon ? colon : NBD_DEFAULT_PORT;
    return decode(a, uri, err);
}

/* NULL without @err for text that is not UTF-8. */
static json_t *server_of(struct parts *p, const char *uri, struct err *err)
{
    char *socket = NULL;
    const char *host = NULL, *port = NULL;

    if (!parse_query(p->query, &socket, uri, err))
        return NULL;
    if (strcmp(p->scheme, "nbd+unix") == 0) {
        if (*p->authority || !socket || !*socket) {
            err_set(err, -EINVAL, "NBD URI '%s' must look like nbd+unix:///EXPORT?socket=PATH",
                    uri);
            return NULL;
        }
        return json_pack("{s:s, s:s}", "type", "unix", "path", socket);
    }
    if (socket) {
        err_set(err, -EINVAL, "NBD URI '%s': a socket goes with nbd+unix:// only", uri);
        return NULL;
    }
    if (!parse_authority(p->authority, &host, &port, uri, err))
        return NULL;
    return json_pack("{s:s, s:s, s:s}", "type", "inet", "host", host, "port", port);
}

static bool check_scheme(const char *scheme, const char *uri, struct err *err)
{
    if (strcmp(scheme, "nbd") == 0 || strcmp(scheme, "nbd+unix") == 0)
        return true;
    if (strcmp(scheme, "nbds") == 0 || strcmp(scheme, "nbds+unix") == 0)
        return err_set(err, -ENOTSUP, "NBD URI '%s': TLS is not supported yet", uri);
    return err_set(err, -EINVAL, "'%s' is not an NBD URI: it must begin with nbd:// or "
                   "nbd+unix://", uri);
}

json_t *nbd_uri_parse(const char *uri, struct err *err)
{
    struct parts p = { 0 };
    struct err why = ERR_INIT;
    json_t *ret = NULL, *server = NULL;

    if (split(uri, &p, &why) && check_scheme(p.scheme, uri, &why) && decode(p.path, uri, &why))
        server = server_of(&p, uri, &why);
    if (server)
        ret = json_pack("{s:o, s:s}", "server", server, "export", p.path ? p.path : "");
    if (!ret && !why.code)
        err_set(&why, -EINVAL, "NBD URI '%s' is not UTF-8", uri);
    if (!ret && err)
        *err = why;
    free(p.text);
    return ret;
}

/* Unreserved characters of RFC 3986 and those that @also lists stay. */
static void encode(struct strbuf *sb, const char *s, const char *also)
{
    for (; *s; s++) {
        if (isalnum((unsigned char)*s) || strchr("-._~", *s) || strchr(also, *s))
            strbuf_addc(sb, *s);
        else
            strbuf_addf(sb, "%%%02X", (unsigned char)*s);
    }
}

char *nbd_uri_for_unix(const char *path, const char *export)
{
    struct strbuf sb = STRBUF_INIT;

    strbuf_add(&sb, "nbd+unix:///");
    encode(&sb, export, "/");
    strbuf_add(&sb, "?socket=");
    encode(&sb, path, "/");
    return strbuf_steal(&sb);
}

char *nbd_uri_for_inet(const char *host, const char *port, const char *export)
{
    bool v6 = strchr(host, ':') != NULL;
    struct strbuf sb = STRBUF_INIT;

    strbuf_add(&sb, v6 ? "nbd://[" : "nbd://");
    encode(&sb, host, ":");
    strbuf_addf(&sb, "%s:", v6 ? "]" : "");
    encode(&sb, port, "");
    if (*export)
        strbuf_addc(&sb, '/');
    encode(&sb, export, "/");
    return strbuf_steal(&sb);
}
