# SPDX-License-Identifier: Apache-2.0
"""tools/tidy.py finds each kind of offence, names its place, and passes clean files.

Method: a small tree with one offence, and the exact findings it must give. Offending
words are put together from pieces, since this file is checked by tidy.py too.
"""
import os
import subprocess
import sys
import tempfile
import unittest

TIDY = os.path.join(os.path.dirname(__file__), "..", "..", "..", "tools", "tidy.py")
HEAD = "/* SPDX-License-Identifier: Apache-2.0\n *\n * What it is for.\n */\n"
SCRIPT = "# SPDX-License-Identifier: Apache-2.0\n\"\"\"What it is for.\"\"\"\n"


def tidy(**files):
    """The findings for a tree of these files; "__" in a name is "/", "_DOT_" is "."."""
    with tempfile.TemporaryDirectory() as root:
        for name, text in files.items():
            path = os.path.join(root, name.replace("__", "/").replace("_DOT_", "."))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
        run = subprocess.run([sys.executable, TIDY, root], stdout=subprocess.PIPE, text=True,
                             check=False)
    lines = run.stdout.splitlines()
    assert run.returncode == (1 if lines else 0), run.returncode
    return lines


class Tidy(unittest.TestCase):
    def one(self, expected, **files):
        found = tidy(**files)
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(expected), found[0])

    def test_clean_tree_passes(self):
        body = "int f(void)\n{\n" + "    g();\n" * 78 + "}\n"
        self.assertEqual(tidy(src__loop__a_DOT_c=HEAD + '#include "base/x.h"\n' + body,
                              tests__behaviour__test_a_DOT_py=SCRIPT,
                              HACKING_DOT_md="See src/loop/a.c:f and src/loop/.\n"), [])

    def test_long_file(self):
        self.one("src/base/a.h:801: file has 804", src__base__a_DOT_h=HEAD + "int x;\n" * 800)

    def test_long_function_is_named(self):
        body = "static int f(void)\n{\n" + "    g();\n" * 79 + "}\n"
        self.one("src/base/a.c:6: f() has 81", src__base__a_DOT_c=HEAD + body)

    def test_long_line(self):
        self.one("src/base/a.c:5: line", src__base__a_DOT_c=HEAD + "int " + "x" * 96 + ";\n")

    def test_upward_include(self):
        self.one("src/cbw/a.c:5: cbw/ includes upwards: job/job.h",
                 src__cbw__a_DOT_c=HEAD + '#include "job/job.h"\n')
        self.one("tests/unit/loop/a.c:5: loop/ includes upwards",
                 tests__unit__loop__a_DOT_c=HEAD + '#include "block/node.h"\n')

    def test_include_without_room(self):
        self.one("src/cbw/a.c:5: include", src__cbw__a_DOT_c=HEAD + '#include "view.h"\n')

    def test_missing_opening(self):
        self.one("src/base/a.c:1: does not begin", src__base__a_DOT_c="int x;\n")
        self.one("src/base/a.c:2: the opening", src__base__a_DOT_c=HEAD[:39] + "\n */\nint x;\n")
        self.one("tools/a.py:1: does not begin", tools__a_DOT_py="import os\n")
        self.one("tools/a.py:2: there is no", tools__a_DOT_py=SCRIPT.split('"')[0] + "import os\n")

    def test_leftover_marks(self):
        for mark in ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"):
            self.one("src/base/a.c:5: leftover", src__base__a_DOT_c=HEAD + f"/* {mark}: x */\n")
        self.assertEqual(tidy(README_DOT_md="/tmp/a.XXXXXX and HACKING\n"), [])

    def test_sleeping_tests(self):
        call = "time.sle" + "ep(1)\n"
        self.one("tests/behaviour/a.py:3: a test sle", tests__behaviour__a_DOT_py=SCRIPT + call)
        self.assertEqual(tidy(tests__lib__a_DOT_py=SCRIPT + call), [])
        self.assertEqual(tidy(tests__unit__loop__a_DOT_c=HEAD + "co_sle" + "ep(1);\n"), [])

    def test_names_in_the_maps(self):
        source = HEAD + "int f(void);\n"
        self.one("ARCHITECTURE.md:2: names src/base/b.c, which",
                 ARCHITECTURE_DOT_md="# Map\n`src/base/b.c`\n", src__base__a_DOT_c=source)
        self.one("HACKING.md:1: names base/a.c:g, which",
                 HACKING_DOT_md="base/a.c:g\n", src__base__a_DOT_c=source)
        self.one("HACKING.md:1: names a.h, which",
                 HACKING_DOT_md="base a.[ch]\n", src__base__a_DOT_c=source)
        self.one("HACKING.md:1: names src/none/, which",
                 HACKING_DOT_md="src/none/ and base/a.c:f\n", src__base__a_DOT_c=source)

    def test_blanks_and_tabs(self):
        self.one("src/base/a.c:5: blanks", src__base__a_DOT_c=HEAD + "int x; \n")
        self.one("src/base/a.c:5: a tab", src__base__a_DOT_c=HEAD + "\tint x;\n")

    def test_what_is_built_is_not_looked_at(self):
        self.assertEqual(tidy(build_asan__a_DOT_c="\t\n"), [])


if __name__ == "__main__":
    unittest.main()
