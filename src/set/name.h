/* SPDX-License-Identifier: Apache-2.0
 *
 * Names in a backup set (docs/backup-sets.md), and instants as text. Pure.
 */
#ifndef SET_NAME_H
#define SET_NAME_H

#include "base/err.h"

#define SET_FILE "set.json"
#define SET_LOCK ".lock"
#define SET_ID_MAX 64
#define SET_INSTANT_TEXT 32

/* ---- points and files --------------------------------------------------------- */

/* "20261201T035705Z"; with @again > 1 "20261201T035705Z-2". free() it. */
char *set_id_of(int64_t instant_ms, unsigned again);

/* Letters, digits, '-' and '_', so that an id is a file's name and a part of others'. */
bool set_id_wellformed(const char *id);

/* Whether @name is that of one file in the set's directory, and of none that the set's keeping
 * needs: no '/', no '.' in front, no ':' (which makes a protocol of a backing file). */
bool set_file_wellformed(const char *name);

char *set_manifest_name(const char *id);       /* "ID.json"; free() it, and those below */
char *set_pending_name(const char *id);        /* ".ID.json.pending" */
/* The id in the name of a manifest, or a pending one; NULL: it is none. free() it. */
char *set_id_of_manifest(const char *name);
char *set_id_of_pending(const char *name);

/* Whether @name is that of a file which is being written, or was when its writer was killed. */
bool set_name_is_temporary(const char *name);

/* "ID-DISK.qcow2", where what a name cannot have is written as %XX. */
char *set_image_name(const char *id, const char *disk);

/* ---- bitmaps -------------------------------------------------------------------- */

/* "set-UUID-ID" (I-M7), and what all of a set begin with. free() them. */
char *set_bitmap_name(const char *uuid, const char *id);
char *set_bitmap_prefix(const char *uuid);

bool set_uuid_wellformed(const char *uuid);

/* ---- instants: milliseconds since 1970 -------------------------------------------- */

/* "2026-12-01T03:57:05.123Z", RFC 3339. Returns @buf. */
char *set_instant_text(int64_t ms, char buf[static SET_INSTANT_TEXT]);

/* The reverse; also with an offset such as +01:00, and without a fraction. */
MUST_CHECK bool set_instant_parse(const char *text, int64_t *ret);

/* What a person says: RFC 3339, or "2026-12-01", "2026-12-01 03:57" or "2026-12-01 03:57:05" of
 * the local time; the last moment that it may mean. */
MUST_CHECK bool set_instant_of_person(const char *text, int64_t *ret);

#endif
