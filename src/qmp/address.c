/* SPDX-License-Identifier: Apache-2.0
 *
 * The tables of socket addresses. In the legacy form each branch is a struct
 * with one member "data" around the struct of the flat form, at offset 0, so
 * that both decode to the same bytes.
 */
#include "qmp/address.h"
#include <arpa/inet.h>
#include <limits.h>

static const struct schema_type socket_address_enum = {
    .name = "SocketAddressType", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "inet", "unix", "fd", NULL },
};

static const struct schema_type flat[] = {
    [SOCKET_ADDRESS_INET] = {
        .name = "InetSocketAddress", .kind = SCHEMA_STRUCT, .size = sizeof(struct inet_address),
        .members = (const struct schema_member[]){
            SCHEMA_REQUIRED(struct inet_address, host, "host", &schema_str,
                            "host name or address"),
            SCHEMA_REQUIRED(struct inet_address, port, "port", &schema_str,
                            "port number or service name"),
            SCHEMA_OPTIONAL(struct inet_address, numeric, "numeric", &schema_bool,
                            "host and port are numbers: no names are looked up"),
            SCHEMA_END,
        },
    },
    [SOCKET_ADDRESS_UNIX] = {
        .name = "UnixSocketAddress", .kind = SCHEMA_STRUCT, .size = sizeof(struct unix_address),
        .members = (const struct schema_member[]){
            SCHEMA_REQUIRED(struct unix_address, path, "path", &schema_str, "of the socket"),
            SCHEMA_END,
        },
    },
    [SOCKET_ADDRESS_FD] = {
        .name = "FdSocketAddress", .kind = SCHEMA_STRUCT, .size = sizeof(struct fd_address),
        .members = (const struct schema_member[]){
            SCHEMA_REQUIRED(struct fd_address, str, "str", &schema_str,
                            "number of a descriptor that was passed in"),
            SCHEMA_END,
        },
    },
};

#define WRAPPER(index, type_name, struct_t) \
    [index] = { \
        .name = type_name, .kind = SCHEMA_STRUCT, .size = sizeof(struct_t), \
        .members = (const struct schema_member[]){ \
            { "data", &flat[index], 0, -1, NULL }, SCHEMA_END, \
        }, \
    }
static const struct schema_type wrapped[] = {
    WRAPPER(SOCKET_ADDRESS_INET, "InetSocketAddressWrapper", struct inet_address),
    WRAPPER(SOCKET_ADDRESS_UNIX, "UnixSocketAddressWrapper", struct unix_address),
    WRAPPER(SOCKET_ADDRESS_FD, "FdSocketAddressWrapper", struct fd_address),
};

static const struct schema_type *flat_branch(const char *type)
{
    int i = schema_enum_index(&socket_address_enum, type);

    return i < 0 ? NULL : &flat[i];
}

static const struct schema_type *wrapped_branch(const char *type)
{
    int i = schema_enum_index(&socket_address_enum, type);

    return i < 0 ? NULL : &wrapped[i];
}

static const char *branch_name(unsigned index)
{
    return index < ARRAY_SIZE(flat) ? socket_address_enum.values[index] : NULL;
}

static const struct schema_member address_members[] = {
    SCHEMA_REQUIRED(struct socket_address, type, "type", &socket_address_enum, NULL),
    SCHEMA_END,
};

const struct schema_type socket_address_type = {
    .name = "SocketAddress", .kind = SCHEMA_UNION, .size = sizeof(struct socket_address),
    .members = address_members, .tag = "type", .branch = flat_branch, .branch_name = branch_name,
    .branch_offset = offsetof(struct socket_address, branch),
};

const struct schema_type socket_address_legacy_type = {
    .name = "SocketAddressLegacy", .kind = SCHEMA_UNION, .size = sizeof(struct socket_address),
    .members = address_members, .tag = "type", .branch = wrapped_branch,
    .branch_name = branch_name, .branch_offset = offsetof(struct socket_address, branch),
};

static bool is_number(const char *s)
{
    return *s && s[strspn(s, "0123456789")] == '\0';
}

static bool is_numeric_host(const char *s)
{
    unsigned char bytes[sizeof(struct in6_addr)];

    return inet_pton(AF_INET, s, bytes) == 1 || inet_pton(AF_INET6, s, bytes) == 1;
}

static bool resolve_inet(const struct inet_address *a, struct nbd_address *ret, struct err *err)
{
    if (a->numeric && !(is_number(a->port) && is_numeric_host(a->host)))
        return err_set(err, -EINVAL, "Address '%s', port '%s': numbers are expected", a->host,
                       a->port);
    *ret = (struct nbd_address){ .kind = NBD_ADDRESS_INET, .host = a->host, .port = a->port };
    return true;
}

static bool resolve_fd(const struct fd_address *a, struct nbd_address *ret, struct err *err)
{
    unsigned long n = is_number(a->str) ? strtoul(a->str, NULL, 10) : ULONG_MAX;

    if (n > INT_MAX)
        return err_set(err, -EINVAL, "Unable to parse FD number '%s'", a->str);
    *ret = (struct nbd_address){ .kind = NBD_ADDRESS_FD, .fd = (int)n };
    return true;
}

bool address_resolve(const struct socket_address *a, struct nbd_address *ret, struct err *err)
{
    const struct unix_address *path = a->branch;

    if (a->type == SOCKET_ADDRESS_INET)
        return resolve_inet(a->branch, ret, err);
    if (a->type == SOCKET_ADDRESS_FD)
        return resolve_fd(a->branch, ret, err);
    *ret = (struct nbd_address){ .kind = NBD_ADDRESS_UNIX, .path = path->path };
    return true;
}
