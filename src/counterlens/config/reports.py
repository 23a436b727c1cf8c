"""Tables and figures: what they show, and the papers' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from counterlens.config.files import CONFIG_DIR, read_yaml, validate
from counterlens.config.options import Identifier, Model, Pair
from counterlens.errors import UserError


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
    methods that the experiment does not run are left out.
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
    ]
    experiment: Identifier
    methods: tuple[Identifier, ...] = Field(min_length=1)
    directions: tuple[Pair, ...] = Field(min_length=1)
    images: int = 1
    parameter: str = ""
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_table(name: str) -> Table:
    """A table by id: `<file>` itself, or `<file>-<variant>` for one of its variants."""
    folder = CONFIG_DIR / "tables"
    for path in sorted(folder.glob("*.yaml")):
        if name == path.stem or name.startswith(f"{path.stem}-"):
            content = read_yaml(path)
            variants = content.pop("variants", None) or {}
            variant = name.removeprefix(path.stem).removeprefix("-")
            if variant and variant not in variants:
                continue
            if variant:
                content["experiments"] = variants[variant]
            table = validate(path, "", Table, {**content, "name": name})
            _check_claims(path, table)
            return table
    raise UserError(f"{folder}/{name}.yaml: no such table; known: {', '.join(table_names())}")


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
    """Every table id: each file under `config/tables/` and its variants."""
    names = []
    for path in sorted((CONFIG_DIR / "tables").glob("*.yaml")):
        variants = read_yaml(path).get("variants") or {}
        names += [path.stem, *(f"{path.stem}-{variant}" for variant in variants)]
    return names


def figure_names() -> list[str]:
    """Every figure id: each file under `config/figures/`."""
    return sorted(path.stem for path in (CONFIG_DIR / "figures").glob("*.yaml"))


def load_figure(name: str) -> Figure:
    """The figure `config/figures/<name>.yaml`."""
    path = CONFIG_DIR / "figures" / f"{name}.yaml"
    return validate(path, "", Figure, {**read_yaml(path), "name": name})
