"""`config/config.yaml`: what `all` builds and how this machine builds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from counterlens.config.files import CONFIG_DIR, read_yaml, validate
from counterlens.config.models import Scale
from counterlens.config.options import Identifier, Model


class Project(Model):
    """`config/config.yaml`: what `all` builds and how this machine builds it."""

    scale: Scale = "small"
    mirror: str | None = None
    threads: int = Field(default=2, gt=0)
    models: tuple[Identifier, ...] = ()
    experiments: tuple[Identifier, ...]
    tables: tuple[Identifier, ...] = ()
    figures: tuple[Identifier, ...] = ()


def load_project(overrides: Mapping[str, Any] | None = None) -> Project:
    """`config/config.yaml`, with the overrides of `snakemake --config`."""
    path = CONFIG_DIR / "config.yaml"
    return validate(path, "", Project, {**read_yaml(path), **(overrides or {})})
