# SPDX-License-Identifier: Apache-2.0
"""The commands as the program itself describes them: what --help prints, taken apart. Manual
pages and completions are made from it at build time, so that they cannot say anything else."""
import dataclasses
import re
import subprocess


@dataclasses.dataclass
class Option:
    names: list                 # ["-f", "--format"]
    value: str                  # "FORMAT"; "": a flag
    text: str

    @property
    def choices(self):
        """The words that the value is one of; None: anything."""
        words = self.value.split("|")
        return words if len(words) > 1 and all(re.fullmatch(r"[a-z-]+", w) for w in words) else None


@dataclasses.dataclass
class Command:
    name: str
    summary: str
    synopsis: list              # what follows the name, a line each
    about: list                 # paragraphs
    options: list
    example: str


def _run(program, *args):
    return subprocess.run([program, *args, "--help"], check=True, capture_output=True,
                          text=True).stdout


def _option(head, text):
    names = re.match(r"(?:-\w, )?--[\w-]+", head).group(0)
    return Option(names.split(", "), head[len(names):].strip(), " ".join(text.split()))


def _options(lines):
    """An option's line is indented by less than its help, which goes on below, or begins there."""
    found = []
    for line in lines:
        start = re.match(r" {2}(?:-\w, | {4})?(--[\w-]+.*)", line)
        if start and not line.startswith(" " * 8):
            head, _, text = line.strip().partition("  ")
            found.append([head, text])
        elif line.strip() and found:
            found[-1][1] += " " + line.strip()
    return [_option(*o) for o in found]


def _command(program, name, summary):
    lines = _run(program, name).splitlines()
    usage = lines.pop(0)
    prefix = f"Usage: stillpoint {name}"
    assert usage.startswith(prefix), usage
    synopsis = [usage[len(prefix):].strip()]
    sections = {"about": []}
    current = "about"
    for line in lines:
        if line in ("Options:", "Example:"):
            current = line
            sections[current] = []
        else:
            sections[current].append(line)
    about = sections["about"]
    # The daemon's options follow its description without a title.
    first = next((i for i, s in enumerate(about) if s.startswith("  --")), None)
    if first is not None:
        about, sections["Options:"] = about[:first], about[first:]
    options = [o for o in _options(sections.get("Options:", [])) if o.names[-1] != "--help"]
    assert options, f"no option found in the help of {name}"
    return Command(name, summary, synopsis, "\n".join(about).strip().split("\n\n"), options,
                   "\n".join(line[2:] for line in sections.get("Example:", [])).strip("\n"))


def commands(program):
    lines = _run(program).splitlines()
    rows = [m.groups() for line in lines if (m := re.match(r"  ([\w-]+) {2,}(.*)", line))]
    assert rows, "no command found in the help"
    return [_command(program, name, summary) for name, summary in rows]
