"""Finds functions of more than 60 lines and files of more than 400: they do more than one thing.

    python tests/lengths.py [FILE…]          default: all that git knows

Docstrings do not count: a public one is as long as its arguments need. clang-tidy measures the
functions of C++ (.clang-tidy).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_IN_A_FUNCTION = 60
MOST_IN_A_FILE = 400
_SUFFIXES = {".py", ".cpp", ".hpp", ".cu", ".inc"}
_NOT_OURS = "third_party"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(node: ast.AST) -> set[int]:
    """The lines of all docstrings in the tree, attributes' ones too."""
    lines: set[int] = set()
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        for statement in body if isinstance(body, list) else []:
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                lines.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return lines


def too_long(name: str, text: str) -> Iterator[str]:
    """A line for each thing in the file that is too long."""
    count = len(text.splitlines())
    if name.endswith(".py"):
        tree = ast.parse(text)
        prose = docstring_lines(tree)
        count -= len(prose)
        for node in ast.walk(tree):
            if isinstance(node, Function):
                lines = set(range(node.lineno, (node.end_lineno or 0) + 1)) - prose
                if len(lines) > MOST_IN_A_FUNCTION:
                    what = f"{node.name}() has {len(lines)} lines"
                    yield f"{name}:{node.lineno}: {what}, at most {MOST_IN_A_FUNCTION}"
    if count > MOST_IN_A_FILE:
        yield f"{name}:1: {count} lines, at most {MOST_IN_A_FILE}"


def main(*names: str) -> int:
    """Print what is too long; 1 if anything is."""
    if not names:
        listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
        names = tuple(
            name
            for name in listed.stdout.split()
            if Path(name).suffix in _SUFFIXES and _NOT_OURS not in name and Path(name).exists()
        )
    found = [line for name in names for line in too_long(name, Path(name).read_text())]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
