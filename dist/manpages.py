#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""manpages.py PROGRAM SOURCES OUT: the manual pages, by scdoc, as OUT/stillpoint*.1.

Options, synopsis and examples are the program's own --help. What a page says beyond that is
in SOURCES/COMMAND.scd; the page of the whole program is SOURCES/stillpoint.scd."""
import os
import re
import subprocess
import sys

import help_text

STATUS = {
    0: "it was done",
    1: "it failed; standard error says what, and what to do",
    2: "the command line makes no sense",
    130: "it was cancelled, by Ctrl-C or by somebody else",
}


def statuses():
    return "".join(f"*{n}*\n\t{text}\n" for n, text in STATUS.items()).rstrip()


def plain(text):
    """Words that are no markup."""
    return re.sub(r"([\\*_`#~<>\[\]])", r"\\\1", text)


def option(o):
    names = ", ".join(f"*{plain(n)}*" for n in o.names)
    value = f" _{plain(o.value)}_" if re.fullmatch(r"\w+", o.value) else f" {plain(o.value)}"
    return f"{names}{value if o.value else ''}\n\t{plain(o.text)}\n"


def read(path):
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as f:
        return f.read().strip() + "\n\n"


def page(c, names, sources):
    synopsis = plain(c.synopsis[0])
    example = "\n".join("\t" + line for line in c.example.splitlines())
    others = ", ".join(f"*stillpoint-{n}*(1)" for n in names if n != c.name)
    parts = [f"stillpoint-{c.name}(1)", f"# NAME\n\nstillpoint-{c.name} - {plain(c.summary)}",
             f"# SYNOPSIS\n\n*stillpoint {c.name}* [options] {synopsis}",
             "# DESCRIPTION\n\n" + "\n\n".join(plain(p) for p in c.about),
             "# OPTIONS\n\n" + "\n".join(option(o) for o in c.options),
             read(os.path.join(sources, c.name + ".scd")).rstrip()]
    if "Exits with" not in " ".join(c.about):
        parts.append("# EXIT STATUS\n\n" + statuses())
    if example:
        parts.append(f"# EXAMPLES\n\n```\n{example}\n```")
    parts.append(f"# SEE ALSO\n\n*stillpoint*(1), {others}")
    return "\n\n".join(p for p in parts if p) + "\n"


def main_page(commands, sources):
    table = "\n".join(f"*stillpoint-{c.name}*(1)\n\t{plain(c.summary)}\n" for c in commands)
    return read(os.path.join(sources, "stillpoint.scd")).replace("@COMMANDS@", table) \
        .replace("@STATUS@", statuses())


def make(name, text, out):
    done = subprocess.run(["scdoc"], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: {done.stderr}\n{text}")
    with open(os.path.join(out, name + ".1"), "w", encoding="utf-8") as f:
        f.write(done.stdout)


def main():
    program, sources, out = sys.argv[1:]
    commands = help_text.commands(program)
    names = [c.name for c in commands]
    os.makedirs(out, exist_ok=True)
    make("stillpoint", main_page(commands, sources), out)
    for c in commands:
        make(f"stillpoint-{c.name}", page(c, names, sources), out)


if __name__ == "__main__":
    main()
