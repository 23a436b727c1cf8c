"""Plugin files: datasets, classifiers, generators, oracles, methods and metrics by name.

A plugin is one Python file. Its class `Options` (standard library, pydantic and
`counterlens.config` only) is read without importing the rest of the file, so that the workflow
can validate an experiment without importing torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from counterlens.config import Options
from counterlens.errors import UserError

PACKAGE = Path(__file__).parent
SECTIONS = ("data", "classifiers", "generators", "oracles", "methods", "metrics")
TORCH_FREE = ("typing", "collections", "enum", "math", "pydantic", "counterlens.config")


def torch_free(module: str) -> bool:
    """Whether an `Options` class may use a module: those of `TORCH_FREE`, and `..._options`."""
    return (
        module == "__future__"
        or any(module == allowed or module.startswith(f"{allowed}.") for allowed in TORCH_FREE)
        or (module.startswith("counterlens.") and module.endswith("_options"))
    )


@cache
def known(section: str) -> list[str]:
    """The kinds that the package ships for a section: its files with a class `Options`."""
    return sorted(
        path.stem.replace("_", "-")
        for path in (PACKAGE / section).glob("*.py")
        if "\nclass Options(" in path.read_text(encoding="utf-8")
    )


def source_file(section: str, kind: str) -> Path:
    """The file of a plugin.

    Raises:
        UserError: there is no such plugin.
    """
    if kind.endswith(".py"):
        if Path(kind).is_file():
            return Path(kind)
        raise UserError(f"'{kind}': no such file")
    if kind in known(section):
        return PACKAGE / section / f"{kind.replace('-', '_')}.py"
    raise UserError(
        f"'{kind}' is unknown; allowed: {', '.join(known(section))}, or path/to/file.py"
    )


@cache
def options_class(section: str, kind: str) -> type[Options]:
    """The plugin's `Options`, without importing the plugin (and torch with it)."""
    path = source_file(section, kind)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid Python: {error}") from None
    kept = [node for node in tree.body if _is_torch_free(node)]
    name = f"counterlens.plugins.options_of.{section}.{path.stem}"
    module = ModuleType(name)
    sys.modules[name] = module
    try:
        exec(compile(ast.Module(kept, []), str(path), "exec"), module.__dict__)
    except Exception as error:
        raise UserError(
            f"{path}: class Options cannot be read by itself ({error}); it may use only classes "
            f"named ...Options and imports from {', '.join(TORCH_FREE)} and ..._options"
        ) from None
    options = module.__dict__.get("Options")
    if not (isinstance(options, type) and issubclass(options, Options)) or options is Options:
        raise UserError(f"{path}: defines no class Options")
    return options


def _is_torch_free(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return torch_free(node.module or "")
    if isinstance(node, ast.Import):
        return all(torch_free(alias.name) for alias in node.names)
    return isinstance(node, ast.ClassDef) and node.name.endswith("Options")


@cache
def implementation(section: str, kind: str, base: type) -> type[Any]:
    """The one subclass of `base` that the plugin's file defines (this imports torch)."""
    path = source_file(section, kind)
    if kind.endswith(".py"):
        name = f"counterlens_plugin_{section}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(f"counterlens.{section}.{path.stem}")
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(classes) != 1:
        raise UserError(f"{path}: must define exactly one {base.__name__}, found {len(classes)}")
    return classes[0]


def create(section: str, options: Options, base: type, *arguments: Any, **keywords: Any) -> Any:
    """An instance of the plugin: `Implementation(options, *arguments, **keywords)`."""
    chosen = implementation(section, options.kind, base)
    module = sys.modules[chosen.__module__]
    own = module.Options.model_validate(options.model_dump())
    return chosen(own, *arguments, **keywords)
