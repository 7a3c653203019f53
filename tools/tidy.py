#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What can be counted about style, checked: sizes, includes, headers, marks, names.

Prints "file:line: message" for each finding and exits with 1 if there is any.
Run by `make check`; `tools/tidy.py [FOLDER]` checks another tree. The rules and
their reasons are in HACKING.md; a rule that is wrong is changed here, not evaded.
"""

import os
import re
import sys

FILE_LINES = 800
FUNCTION_LINES = 80
COLUMNS = 100
ROOMS = ["base", "loop", "block", "sidecar", "cbw", "drivers", "job", "export", "qmp", "quiesce",
         "set", "app"]

C_LIKE = (".c", ".h", ".S")
CODE = C_LIKE + (".py", ".sh")
TEXT = CODE + (".md", "meson.build", "Makefile")
SKIPPED_FOLDERS = re.compile(r"^(build.*|\..*|__pycache__|corpus|node_modules)$")

# In pieces, so that this file does not find itself.
MARKS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b")
SPDX = "SPDX-License-Identifier: " + "Apache-2.0"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
SLEEP = re.compile(r"\b(u|nano|clock_nano)?sleep\s*\(")
SHELL_SLEEP = re.compile(r"(^|[;&|]|\bdo\b|\bthen\b)\s*sleep\s+[\d.$]")
FILE_NAME = re.compile(r"(?<![\w/.*<-])([\w][\w./-]*\.(?:\[ch\]|c|h|S|py|sh|md|build))"
                       r"(?![\w/])(?::(\w+))?")
FOLDER_NAME = re.compile(r"(?<![\w/.*<-])((?:src|tests|docs|tools|bench)/(?:[\w.-]+/)*)"
                         r"(?![\w.*<\[{])")


class File:
    """A text file of the tree: its path from the root with '/', and its lines."""

    def __init__(self, root, path):
        self.path = path
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
            self.lines = f.read().splitlines()

    def is_a(self, endings):
        return self.path.endswith(endings)

    def room(self):
        """The room whose includes this file must keep to; None for other files."""
        for prefix in ("src/", "tests/unit/"):
            if self.path.startswith(prefix):
                name = self.path[len(prefix):].split("/")[0]
                return name if name in ROOMS else None
        return None


def check_length(f):
    if f.is_a((".c", ".h", ".py")) and len(f.lines) > FILE_LINES:
        yield FILE_LINES + 1, f"file has {len(f.lines)} lines, more than {FILE_LINES}"


def check_columns(f):
    if not f.is_a(CODE + ("meson.build",)):
        return
    for n, line in enumerate(f.lines, 1):
        if len(line.expandtabs(8)) > COLUMNS:
            yield n, f"line is longer than {COLUMNS} columns"


def check_whitespace(f):
    if not f.is_a(CODE + ("meson.build",)):
        return
    for n, line in enumerate(f.lines, 1):
        if line != line.rstrip():
            yield n, "blanks at the end of the line"
        if "\t" in line and not f.is_a(".S"):
            yield n, "a tab: indentation is four spaces"


def function_name(lines, brace):
    """The name of the function whose body opens at lines[brace]."""
    head = ""
    for line in reversed(lines[max(0, brace - 12):brace]):
        if not line.strip() or line.startswith(("}", "#", " *", "/*")):
            break
        head = line + " " + head
    found = re.search(r"(\w+)\s*\(", head)
    return found.group(1) if found else "function"


def check_functions(f):
    """In this code's style a lone brace in the first column opens a function."""
    if not f.is_a((".c", ".h")):
        return
    start = None
    for n, line in enumerate(f.lines):
        if line == "{":
            start = n
        elif line.startswith("}") and start is not None:
            size = n - start + 1
            if size > FUNCTION_LINES:
                yield start + 1, (f"{function_name(f.lines, start)}() has {size} lines, "
                                  f"more than {FUNCTION_LINES}")
            start = None


def check_includes(f):
    room = f.room()
    if room is None or not f.is_a(C_LIKE):
        return
    for n, line in enumerate(f.lines, 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        target = found.group(1).split("/")[0]
        if target in ROOMS:
            if ROOMS.index(target) > ROOMS.index(room):
                yield n, f"{room}/ includes upwards: {found.group(1)}"
        elif f.path.startswith("src/"):
            yield n, f'include "{found.group(1)}" does not begin with its room'


def check_opening(f):
    """The licence's tag, and at least one line on what the file is for."""
    if not f.is_a(CODE):
        return
    head = f.lines[:12]
    if f.is_a(C_LIKE):
        if not head or head[0] != "/* " + SPDX:
            yield 1, f"does not begin with '/* {SPDX}'"
        elif not any(re.match(r" \* \w", line) for line in head[1:4]):
            yield 2, "the opening comment does not say what the file is for"
        return
    if not any(line == "# " + SPDX for line in head[:2]):
        yield 1, f"does not begin with '# {SPDX}'"
    elif not any(re.match(r'(#|"""|r""")\s*\w', line) and SPDX not in line
                 for line in head[1:6]):
        yield 2, "there is no comment at the start on what the file is for"


def check_marks(f):
    for n, line in enumerate(f.lines, 1):
        found = MARKS.search(line)
        if found:
            yield n, f"leftover mark {found.group(1)}: do it, or file it"


def check_sleeps(f):
    """Only the helpers in tests/lib/ may sleep, between looks at a condition."""
    if not f.path.startswith("tests/") or f.path.startswith("tests/lib/"):
        return
    if not f.is_a(CODE):
        return
    pattern = SHELL_SLEEP if f.is_a(".sh") else SLEEP
    for n, line in enumerate(f.lines, 1):
        if pattern.search(line):
            yield n, "a test sleeps: wait for the condition (tests/lib/)"


def resolve(root, names, name):
    """The file that a document means by @name; None if there is none."""
    for base in ("", "src", "tests", "tests/unit", "docs"):
        path = os.path.normpath(os.path.join(base, name)).replace(os.sep, "/")
        if path in names:
            return path
    if "/" not in name:
        for path in sorted(names):
            if path.endswith("/" + name):
                return path
    return None


def check_names(f, root, names):
    """Files, folders and file:function that the maps of the project mention."""
    if f.path not in ("ARCHITECTURE.md", "HACKING.md"):
        return
    for n, line in enumerate(f.lines, 1):
        for name, function in FILE_NAME.findall(line):
            spelt = ([name[:-4] + "c", name[:-4] + "h"] if name.endswith("[ch]") else [name])
            for one in spelt:
                path = resolve(root, names, one)
                if path is None:
                    yield n, f"names {one}, which does not exist"
                elif function and not function.isdigit():
                    text = "\n".join(File(root, path).lines)
                    if not re.search(rf"\b{function}\b", text):
                        yield n, f"names {one}:{function}, which is not there"
        for name in FOLDER_NAME.findall(line):
            if not os.path.isdir(os.path.join(root, name)):
                yield n, f"names {name}, which does not exist"


CHECKS = [check_length, check_columns, check_whitespace, check_functions, check_includes,
          check_opening, check_marks, check_sleeps]


def tree(root):
    """The paths of the text files below @root, without what is built."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(d for d in folders if not SKIPPED_FOLDERS.match(d))
        for name in sorted(files):
            if name.endswith(TEXT):
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def findings(root):
    names = set(tree(root))
    for path in sorted(names):
        f = File(root, path)
        for check in CHECKS:
            for line, message in check(f):
                yield path, line, message
        for line, message in check_names(f, root, names):
            yield path, line, message


def main():
    default = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    root = sys.argv[1] if len(sys.argv) > 1 else default
    found = 0
    for path, line, message in findings(root):
        print(f"{path}:{line}: {message}")
        found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
