#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""completions.py PROGRAM OUT: completion of commands, options and their values, for bash
(OUT/stillpoint) and zsh (OUT/_stillpoint), made from the program's own --help."""
import os
import sys

import help_text

BASH = """# bash completion for stillpoint
_stillpoint() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$cur"))
        return
    fi
    case ${{COMP_WORDS[1]}}:$prev in
{values}
    esac
    if [[ $cur == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{options}
        esac
        COMPREPLY=($(compgen -W "$words --help" -- "$cur"))
        return
    fi
    compopt -o default
}}
complete -F _stillpoint stillpoint
"""

ZSH = """#compdef stillpoint
# zsh completion for stillpoint
_stillpoint() {{
    local -a commands
    commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
{options}
    esac
}}
_stillpoint "$@"
"""


def bash_values(c):
    rows = []
    for o in c.options:
        at = "|".join(f"{c.name}:{n}" for n in o.names)
        if o.choices:
            rows.append(f"        {at}) COMPREPLY=($(compgen -W \"{' '.join(o.choices)}\" -- "
                        f"\"$cur\")); return ;;")
        elif o.value:
            rows.append(f"        {at}) compopt -o default; return ;;")
    return rows


def long_names(c):
    return " ".join(o.names[-1] for o in c.options)


def bash(commands):
    return BASH.format(
        commands=" ".join(c.name for c in commands),
        values="\n".join(row for c in commands for row in bash_values(c)),
        options="\n".join(f"        {c.name}) words=\"{long_names(c)}\" ;;" for c in commands))


def quoted(text):
    return text.replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def zsh_option(o):
    value = f":{quoted(o.value).split('|')[0]}:" if o.value else ""
    if o.choices:
        value = f":value:({' '.join(o.choices)})"
    elif o.value:
        value += "_files"
    return [f"            '{'*' if o.value else ''}{n}[{quoted(o.text)}]{value}' \\"
            for n in o.names]


def zsh(commands):
    options = []
    for c in commands:
        options.append(f"    {c.name})\n        _arguments \\")
        options += [row for o in c.options for row in zsh_option(o)]
        options.append("            '--help[this text]' '*:file:_files' ;;")
    summaries = [f"        '{c.name}:{quoted(c.summary)}'" for c in commands]
    return ZSH.format(commands="\n".join(summaries), options="\n".join(options))


def main():
    program, out = sys.argv[1:]
    commands = help_text.commands(program)
    for name, text in ("stillpoint", bash(commands)), ("_stillpoint", zsh(commands)):
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            f.write(text)


if __name__ == "__main__":
    main()
