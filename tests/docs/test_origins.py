"""The pages of docs/origins are true: every pycon and console block is executed and its output compared."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from xpcnn.cli import main

FOLDER = Path(__file__).parents[2] / "docs" / "origins"
FOUND = sorted(FOLDER.glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"^<!-- needs: ([\w, ]+) -->$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # to another file, not to the web
EXECUTED, SHOWN = ("pycon", "console"), ("text", "sh", "toml", "json", "math", "mermaid")  # what a page may hold
FLAGS = doctest.ELLIPSIS  # "..." stands for whatever is printed there

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the docs are not part of this tree")


def execute(text, name, folder):
    """Run a page's blocks in order, in one namespace and one folder; return what is not as the page says."""
    names, faults = {"__name__": "__main__"}, []
    with contextlib.chdir(folder), np.printoptions():  # what a page sets ends with it
        for block in FENCED.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            if block[1] == "pycon":
                faults.append(run_python(block[2], names, name, line))
            elif block[1] == "console":
                faults.append(run_console(block[2], f"{name}, line {line + 1}"))
            elif block[1] not in SHOWN:
                faults.append(f"{name}, line {line}: a block is {', '.join(EXECUTED + SHOWN)}, not {block[1]!r}.\n")
    return "".join(faults)


def run_python(source, names, name, line):
    """Run a block of >>> lines; return doctest's report of what differs."""
    report = io.StringIO()
    test = doctest.DocTestParser().get_doctest(source, {}, name, name, line)
    test.globs = names
    assert test.examples, f"{name}, line {line}: a pycon block without >>>"
    doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(test, out=report.write, clear_globs=False)
    return report.getvalue()


def run_console(source, where):
    """Run a block of `$ xpcnn ...` lines with what they print, errors included; return what differs."""
    faults = []
    before, *commands = re.split(r"^\$ ", source, flags=re.MULTILINE)
    assert commands, f"{where}: a console block without $"
    assert not before, f"{where}: a console block begins with $"
    for command in commands:
        line, _, expected = command.replace("\\\n", " ").partition("\n")
        program, *arguments = shlex.split(line, comments=True)
        if program != "xpcnn":
            faults.append(f"{where}: only xpcnn can be run in a console block, not {program}; show others as sh.\n")
            continue
        with io.StringIO() as both, contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
            status = main(arguments)
            printed = both.getvalue()
        if not doctest.OutputChecker().check_output(expected, printed, FLAGS):
            faults.append(f"{where}: $ {line}\nExpected:\n{expected}Got:\n{printed}")
        elif status and "xpcnn: error: " not in expected:
            faults.append(f"{where}: $ {line}\nended with status {status}.\n")
    return "".join(faults)


def missing(text):
    """Return the libraries that a page says it needs and that are not installed."""
    named = [name.strip() for line in NEEDS.findall(text) for name in line.split(",")]
    return [name for name in named if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_page(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    if lacking := missing(text):
        pytest.skip(f"{path.name} needs {', '.join(lacking)}")
    assert text.count("\n```") % 2 == 0
    faults = execute(text, path.name, tmp_path)
    assert not faults, f"\n{faults}"


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    broken = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / link).exists()]
    assert not broken


def test_the_index_names_every_page():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in FOUND} <= {"README.md", *LINK.findall(index)}


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("```pycon\n>>> 1 + 1\n2\n```\n", ""),
        ("```pycon\n>>> 1 + 1\n3\n```\n", "Expected:\n    3\nGot:\n    2"),
        ("```pycon\n>>> one = 1\n```\nand\n```pycon\n>>> one\n1\n```\n", ""),
        ("\n\n```pycon\n>>> 1 + 1\n2\n>>> 1 / 0\n```\n", 'File "page", line 6'),
        ("```pycon\n>>> list(range(99))\n[0, ..., 98]\n```\n", ""),
        ("```console\n$ xpcnn --version\nxpcnn, version ...\n```\n", ""),
        ("```console\n$ xpcnn --version\nxpcnn, version 99\n```\n", "Got:\nxpcnn, version 0"),
        ("```console\n$ xpcnn \\\n  --version  # which\nxpcnn, version ...\n```\n", ""),
        ("```console\n$ xpcnn evaluate\n...Missing...\n```\n", "ended with status 2"),
        ("```console\n$ xpcnn evaluate\nxpcnn: error: Missing argument 'RUN'.\n```\n", ""),
        ("```console\n$ ls\n```\n", "only xpcnn"),
        ("```python\nimport this\n```\n", "not 'python'"),
        ("```sh\nls\n```\n", ""),
    ],
)
def test_a_page_that_is_not_true_fails(page, fault, tmp_path):
    faults = execute(page, "page", tmp_path)
    assert fault in faults
    assert bool(fault) == bool(faults)


def test_a_page_names_what_it_needs():
    assert missing("words\n<!-- needs: numpy, no_such_library -->\n") == ["no_such_library"]
    assert missing("words") == []
