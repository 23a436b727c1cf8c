"""YAML files, and one clear error per mistake in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from counterlens.errors import UserError

CONFIG_DIR = Path("config")
T = TypeVar("T", bound=BaseModel)


def _check_keys(root: yaml.Node | None) -> None:
    """Reject a key written twice, which YAML would take the last of.

    Asked before any `<<` is resolved: that puts inherited keys beside the mapping's own.
    """
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"key '{repeated[0]}' stands twice in the mapping at line {line}")
        waiting += [part for pair in node.value for part in pair]


def _parse_yaml(text: str) -> Any:
    """Safe YAML, read by LibYAML: a third of the time that the loader in Python takes."""
    loader = yaml.CSafeLoader(text)
    try:
        root = loader.get_single_node()
        _check_keys(root)
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        content = _parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; known: {_known(path.parent)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of keys is expected at the top level")
    return content


def _known(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"


def merge(
    base: Mapping[str, Any], override: Mapping[str, Any], keep_null: bool = False
) -> dict[str, Any]:
    """`base` with `override` laid over it, mapping by mapping.

    `null` removes a key; with `keep_null` it stays, to remove the key of a later `base`.
    """
    merged = dict(base)
    for key, value in override.items():
        if value is None and not keep_null:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value, keep_null)
        else:
            merged[key] = value
    return merged


def validate(path: Path, key: str, model: type[T], content: object) -> T:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError("; ".join(_explain(path, key, model, error))) from None


def _explain(path: Path, key: str, model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        place = ".".join([*([key] if key else []), *map(str, detail["loc"])])
        if detail["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(_part(model, detail["loc"][:-1]).model_fields))
            yield f"{path}: {place}: unknown key; allowed: {allowed}"
        elif detail["type"] == "missing":
            yield f"{path}: {place}: key is missing"
        else:
            yield f"{path}: {place}: {detail['msg']} (found {detail['input']!r})"


def _part(model: type[BaseModel], place: Iterable[str | int]) -> type[BaseModel]:
    """The model of a key inside a model, e.g. that of `rows.1` in a table."""
    for key in place:
        if key in model.model_fields:
            annotation = model.model_fields[str(key)].annotation
            for part in (annotation, *get_args(annotation)):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    model = part
    return model
