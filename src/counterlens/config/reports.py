"""Tables and figures: what they show, and the papers' numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from counterlens.config.files import CONFIG_DIR, read_yaml, validate
from counterlens.config.options import Identifier, Model, Pair
from counterlens.errors import UserError

T = TypeVar("T", bound=Model)


class Row(Model):
    """One row of a table: a method of the experiment, or one that is not run.

    `in_filter`: whether the table's filter asks it, too.
    """

    method: Identifier
    label: str
    in_filter: bool = True


class Claim(Model):
    """What is said of a table, to be checked with our numbers.

    `columns`: the first of them that is available decides. `relation`: `highest` and `lowest` set
    `method` against the others, `at-most` and `at-least` against `value`; `falls` says that no row
    of `against`, in order, is above the one before it, `method` being the first. `whose`: the claim
    is the paper's, or what we expect where it says nothing.
    """

    text: str
    whose: Literal["paper", "ours"] = "paper"
    columns: tuple[str, ...] = Field(min_length=1)
    relation: Literal["highest", "lowest", "at-most", "at-least", "falls"]
    method: Identifier
    against: tuple[Identifier, ...] = ()
    value: float | None = None


class Table(Model):
    """A numbered table of a paper: its rows, columns and published numbers.

    `paper_values` maps experiment, method and column to the number as printed. `ranked`: each row
    has a rank in each column, and the mean of its ranks; the paper is then none. `directions`: each
    row is about the directions that it has in common with the others (`shared`), or about all of
    its `own`. `filter`: `found-by-all` averages what is measured per image over the images for
    which every row found a counterfactual, and prints the mean over all images beside it;
    `common-images` counts the images that every row explains.
    """

    name: Identifier
    title: str
    paper: str = ""
    ranked: bool = False
    rows: tuple[Row, ...] = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1)
    experiments: tuple[Identifier, ...] = Field(min_length=1)
    directions: Literal["shared", "own"] = "shared"
    filter: Literal["none", "found-by-all", "common-images"] = "none"
    paper_values: dict[str, dict[str, dict[str, float]]] = Field(default={})
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()


class Figure(Model):
    """A figure of a paper, drawn from the artifacts of one experiment.

    `parameter` and `columns` belong to the kind `parameter`: metric columns drawn against one
    option of the methods. The kind `pareto` draws the first of two `columns` against the second;
    methods that the experiment does not run are left out. The kind `strip` shows one query of the
    first direction.
    """

    name: Identifier
    title: str
    paper: str = ""
    kind: Literal[
        "cout",
        "latent-change",
        "traversal",
        "gallery",
        "path",
        "tsne",
        "stages",
        "parameter",
        "latents",
        "diversity",
        "angle",
        "pareto",
        "strip",
    ]
    experiment: Identifier
    methods: tuple[Identifier, ...] = Field(min_length=1)
    directions: tuple[Pair, ...] = Field(min_length=1)
    images: int = 1
    parameter: str = ""
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _described(section: str, name: str = "") -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Every table or figure as (id, file, content): each file's own and those of its variants.

    A file that names no experiment holds only what its variants have in common.

    Args:
        section: `tables` or `figures`.
        name: an id; then only the files that may describe it are read.
    """
    key = "experiments" if section == "tables" else "experiment"
    for path in sorted((CONFIG_DIR / section).glob("*.yaml")):
        if name and name != path.stem and not name.startswith(f"{path.stem}-"):
            continue
        content = read_yaml(path)
        variants = content.pop("variants", None) or {}
        if key in content or not variants:
            yield path.stem, path, content
        for variant, changes in variants.items():
            laid_over = {key: changes} if section == "tables" else changes
            if not isinstance(laid_over, dict):
                raise UserError(f"{path}: variants.{variant}: a mapping of keys is expected")
            yield f"{path.stem}-{variant}", path, {**content, **laid_over}


def _load(section: str, name: str, model: type[T]) -> tuple[Path, T]:
    """The file of a table or figure, and what it says."""
    for each, path, content in _described(section, name):
        if each == name:
            return path, validate(path, "", model, {**content, "name": name})
    known = ", ".join(each for each, _, _ in _described(section))
    kind = section.removesuffix("s")
    raise UserError(f"{CONFIG_DIR / section / name}.yaml: no such {kind}; known: {known}")


def load_table(name: str) -> Table:
    """A table by id: `<file>` itself, or `<file>-<variant>`: the same on other experiments."""
    path, table = _load("tables", name, Table)
    _check_claims(path, table)
    return table


def load_figure(name: str) -> Figure:
    """A figure by id: `<file>` itself, or `<file>-<variant>`: with the keys of the variant."""
    return _load("figures", name, Figure)[1]


def _check_claims(path: Path, table: Table) -> None:
    rows = [row.method for row in table.rows]
    for place, claim in enumerate(table.claims):
        wrong = [name for name in (claim.method, *claim.against) if name not in rows]
        wrong += [name for name in claim.columns if name not in table.columns]
        if wrong:
            raise UserError(
                f"{path}: claims.{place}: '{wrong[0]}' is no row or column of the table"
            )
        if (claim.value is None) == (claim.relation in ("at-most", "at-least")):
            raise UserError(
                f"{path}: claims.{place}: at-most and at-least, and only these, have a value"
            )


def table_names() -> list[str]:
    """Every table id: the files under `config/tables/` and their variants."""
    return [name for name, _, _ in _described("tables")]


def figure_names() -> list[str]:
    """Every figure id: the files under `config/figures/` and their variants, in order."""
    return sorted(name for name, _, _ in _described("figures"))
