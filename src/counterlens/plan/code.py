"""Which source files shape the result of a job: those it runs, however far they import."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from counterlens.plugins import PACKAGE

READ = (".yaml", ".j2", ".css", ".js")
CONTROL = ("", "config", "plan", "bench")
"""Folders of the package whose modules decide which job runs with which settings, and shape no
result besides: their effect reaches a job through its parameters and inputs."""


@cache
def imports(path: Path) -> frozenset[Path]:
    """The package's files that a file imports, anywhere in it, and the files it names beside it."""
    reached: set[Path] = set()
    if path.suffix != ".py":
        return frozenset()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Constant) and str(node.value).endswith(READ):
            beside = path.with_name(Path(str(node.value)).name)
            reached |= {beside} if beside.is_file() else set()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                file = PACKAGE.parent / Path(*name.split("."))
                reached |= {
                    p for p in (file.with_suffix(".py"), file / "__init__.py") if p.is_file()
                }
    return frozenset(reached)


@cache
def closure(paths: frozenset[Path]) -> frozenset[Path]:
    """The files and all of the package that they import, however far."""
    reached: set[Path] = set()
    waiting = set(paths)
    while waiting:
        path = waiting.pop()
        reached.add(path)
        waiting |= imports(path) - reached
    return frozenset(reached)


def is_control(path: Path) -> bool:
    """Whether a file of the package belongs to the control part."""
    return path.parent in {PACKAGE / folder for folder in CONTROL}


def code_of(files: Iterable[Path]) -> list[str]:
    """Source files that a job runs, relative to the project folder.

    Control modules among them count only where a report is made: it decides what is shown.
    """
    chosen = frozenset(files)
    reports = any(path.parent == PACKAGE / "reports" for path in chosen)
    return [relative(path) for path in sorted(closure(chosen)) if reports or not is_control(path)]


def relative(path: Path) -> str:
    """A path as Snakemake should print and record it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
