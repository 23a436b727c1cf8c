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
TORCH_FREE = (
    "typing",
    "collections",
    "enum",
    "math",
    "pydantic",
    "counterlens.config",
    "counterlens.data.celeba_attributes",
    "counterlens.generators.diffusion_options",
    "counterlens.generators.latent_options",
    "counterlens.generators.region_options",
    "counterlens.methods.filtered_attack_options",
    "counterlens.methods.latent_options",
    "counterlens.methods.eced_options",
)
NOT_PLUGINS = {
    "data": {
        "base",
        "fetch",
        "prepare",
        "idx",
        "medmnist",
        "celeba_attributes",
        "celeba_lists",
        "image_folders",
        "labelled_pictures",
        "zipped_images",
        "weights",
    },
    "classifiers": {"base", "train", "adopt"},
    "generators": {
        "base",
        "train",
        "export",
        "diffusion",
        "diffusion_options",
        "latent",
        "latent_options",
        "region_options",
        "regions",
        "released",
    },
    "oracles": {"base", "train"},
    "methods": {
        "base",
        "fit",
        "explain",
        "cells",
        "filtered_attack",
        "filtered_attack_options",
        "latents",
        "latent_options",
        "eced_options",
        "edit_region",
        "score_cam",
        "background",
        "blended_diffusion",
        "mirror_generator",
        "reflection",
    },
    "metrics": {"base", "compute", "bootstrap", "vlm_client"},
}


@cache
def known(section: str) -> list[str]:
    """The kinds that the package ships for a section, e.g. `["c3lt", "pgd"]`."""
    stems = {path.stem for path in (PACKAGE / section).glob("*.py")}
    return sorted(stem.replace("_", "-") for stem in stems - NOT_PLUGINS[section] if stem[0] != "_")


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
            f"named ...Options and imports from {', '.join(TORCH_FREE)}"
        ) from None
    options = module.__dict__.get("Options")
    if not (isinstance(options, type) and issubclass(options, Options)) or options is Options:
        raise UserError(f"{path}: defines no class Options")
    return options


def _is_torch_free(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return module == "__future__" or any(
            module == allowed or module.startswith(f"{allowed}.") for allowed in TORCH_FREE
        )
    if isinstance(node, ast.Import):
        return all(alias.name.split(".")[0] in TORCH_FREE for alias in node.names)
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
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        raise UserError(f"{path}: must define exactly one {base.__name__}, found {len(found)}")
    return found[0]


def create(section: str, options: Options, base: type, *arguments: Any, **keywords: Any) -> Any:
    """An instance of the plugin: `Implementation(options, *arguments, **keywords)`."""
    chosen = implementation(section, options.kind, base)
    module = sys.modules[chosen.__module__]
    own = module.Options.model_validate(options.model_dump())
    return chosen(own, *arguments, **keywords)
