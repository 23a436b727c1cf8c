"""Write `dvc.yaml` from `config/`; run `python rules/dvc_yaml.py` after changing what is in it.

One stage per group of files that `rules/dvc.smk` makes a target, with the dependencies, parameters
and outputs of just that group, so that `dvc repro <stage>` makes what it needs and nothing else.
`foreach` cannot say this: its stages all have equally many dependencies and outputs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from counterlens import layout
from counterlens.config import (
    CONFIG_DIR,
    ORIGINAL_DATA,
    ClassifierOptions,
    Experiment,
    Figure,
    Options,
    Table,
    read_yaml,
)
from counterlens.plan import inputs
from counterlens.plan.plan import Workflow

CODE = ("Snakefile", "rules", "src/counterlens")
KEPT = "persist: true"  # DVC would delete the files first, and all of them would be made again
IN_GIT = "cache: false, persist: true"
HEADER = """\
# Written by rules/dvc_yaml.py from config/: do not edit, run "python rules/dvc_yaml.py".
#
# Snakemake decides what is run, DVC records what came out (docs/dvc.md). Every stage asks Snakemake
# for one group of files; further words for Snakemake go into the variable SMK_ARGS. The target
# stands before it, since --resources would take a target that follows.

stages:
"""
Parameters = list[tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Stage:
    """A stage as it stands in `dvc.yaml`; `parameters` with no key are the whole file."""

    name: str
    command: str
    deps: tuple[str, ...] = ()
    parameters: Parameters = field(default_factory=list)
    outs: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] = ()
    plots: tuple[str, ...] = ()

    def text(self) -> str:
        """The stage in YAML."""
        lines = [f"  {self.name}:", f"    cmd: {self.command}"]
        if self.deps:
            lines += ["    deps:", *(f"      - {dep}" for dep in self.deps)]
        if self.parameters:
            lines.append("    params:")
        for file, keys in self.parameters:
            lines.append(f"      - {file}:" + (f" [{', '.join(keys)}]" if keys else ""))
        if self.outs:
            lines.append("    outs:")
            lines += [f"      - {path}: {{{flags}}}" for path, flags in self.outs]
        for title, paths in (("metrics", self.metrics), ("plots", self.plots)):
            if paths:
                lines.append(f"    {title}:")
                lines += [f"      - {path}: {{{IN_GIT}}}" for path in paths]
        return "\n".join(lines) + "\n"


class Stages:
    """All stages of the experiments that `config/config.yaml` lists."""

    def __init__(self, project: Workflow) -> None:
        self.project = project
        self.experiments = [project.experiments[name] for name in project.project.experiments]

    def all(self) -> Iterator[Stage]:
        """In the order of the pipeline; the record of provenance comes last."""
        for options in {e.dataset.name: e.dataset for e in self.experiments}.values():
            raw = [layout.raw(options.name)] if options.files else []
            yield self.download(
                f"datasets_{options.name}",
                [*raw, layout.PREPARED / options.name],
                own_code([options]),
            )
        if any(needs_weights(e) for e in self.experiments):
            yield self.download("pretrained", [layout.WEIGHTS])
        for e in self.experiments:
            yield from self.experiment(e)
        listed = {e.name for e in self.experiments}
        for table in self.project.tables.values():
            if listed.issuperset(table.experiments):
                yield self.table(table)
        for figure in self.project.figures.values():
            if figure.experiment in listed:
                yield self.figure(figure)
        # Depends on the whole folder, which lets every other stage come first and still allows
        # "dvc repro --single-item provenance" when only some of them have been run.
        yield Stage(
            "provenance",
            '"true"',
            (str(layout.RESULTS),),
            outs=((".snakemake/metadata", KEPT),),
        )

    def stage(
        self,
        name: str,
        target: str = "",
        deps: Iterable[Path] = (),
        parameters: Parameters | None = None,
        outs: Iterable[Path] = (),
        reports: Iterable[Path] = (),
        metrics: Iterable[Path] = (),
        plots: Iterable[Path] = (),
        code: Iterable[str] = (),
    ) -> Stage:
        """A stage that asks Snakemake for a target, by default the one of the stage's own name."""
        return Stage(
            name,
            f"snakemake {target or name} $SMK_ARGS",
            (*CODE, *code, *dict.fromkeys(map(str, deps))),
            [(f"{CONFIG_DIR}/config.yaml", ("scale",)), *(parameters or [])],
            (*((str(path), KEPT) for path in outs), *((str(path), IN_GIT) for path in reports)),
            tuple(map(str, metrics)),
            tuple(map(str, plots)),
        )

    def download(self, name: str, outs: Iterable[Path], own: Iterable[str] = ()) -> Stage:
        """A stage that no setting shapes; `own` is code outside the package."""
        kept = tuple((str(path), KEPT) for path in outs)
        return Stage(name, f"snakemake {name} $SMK_ARGS", (*CODE, *own), outs=kept)

    def experiment(self, e: Experiment) -> Iterator[Stage]:
        """Every stage of an experiment, its report included."""
        data = layout.PREPARED / e.dataset.name
        classifier = layout.classifier(e.name)
        yield self.stage(
            f"classifiers_{e.name}",
            deps=[data, *([layout.WEIGHTS] if e.classifier.named_weights else [])],
            parameters=parameters(e.name, "classifier"),
            outs=[classifier],
            code=own_code(parts(e)),
        )
        if inputs.trained_oracles(e):
            yield self.stage(
                f"oracles_{e.name}",
                deps=[data],
                parameters=parameters(e.name, "pairs", "classifier", "oracles"),
                outs=[oracles(e)],
                code=own_code(parts(e)),
            )
        for name, options in e.generators.items():
            users = [
                f"methods.{method}"
                for method, chosen in e.methods.items()
                if options.per_pair and name in e.required_generators(chosen.generators())
            ]
            yield self.stage(
                f"generators_{e.name}_{name}",
                deps=[data, classifier, *(generator(e, other) for other in options.requires())],
                parameters=parameters(e.name, "pairs", f"generators.{name}", *users),
                outs=[generator(e, name), training_times(e, "generators", name)],
                code=own_code(parts(e)),
            )
        for method in (*e.methods, ORIGINAL_DATA):
            yield self.counterfactuals(e, method)
            yield self.metrics(e, method)
        yield self.report(e)

    def counterfactuals(self, e: Experiment, method: str) -> Stage:
        """Training, where there is any, and the counterfactual sets of a method."""
        outs = [counterfactuals(e, method)]
        needed: tuple[str, ...] = ()
        borrowed: list[Path] = []
        sections = ["pairs", "evaluation"]
        if method != ORIGINAL_DATA:
            options = e.methods[method]
            needed = options.generators()
            sections.append(f"methods.{method}")
            outs.append(layout.TIMINGS / e.name / method)
            if method in e.trained_methods():
                outs.insert(0, trained_method(e, method))
                outs.append(training_times(e, "methods", method))
            elif options.trained_as is not None:
                borrowed.append(trained_method(e, options.trained_as))
            if (earlier := options.builds_on()) is not None:
                borrowed.append(counterfactuals(e, earlier))
        return self.stage(
            f"counterfactuals_{e.name}_{method}",
            deps=[
                layout.PREPARED / e.dataset.name,
                layout.classifier(e.name),
                *(generator(e, name) for name in needed),
                *borrowed,
            ],
            parameters=parameters(e.name, *sections),
            outs=outs,
            code=own_code(parts(e)),
        )

    def metrics(self, e: Experiment, method: str) -> Stage:
        """The judgement on a method."""
        return self.stage(
            f"metrics_{e.name}_{method}",
            deps=[
                layout.PREPARED / e.dataset.name,
                layout.classifier(e.name),
                *([oracles(e)] if inputs.trained_oracles(e) else []),
                *([layout.WEIGHTS] if any(o.weights for o in e.oracles.values()) else []),
                counterfactuals(e, method),
            ],
            parameters=parameters(e.name, "pairs", "metrics"),
            outs=[metrics(e, method)],
            code=own_code(parts(e)),
        )

    def report(self, e: Experiment) -> Stage:
        """The experiment's report and its table of costs."""
        cost = layout.TABLES / f"{e.name}-cost"
        animated = {Path(folder).parents[2] for folder in self.project.animations(e.name)}
        return self.stage(
            f"reports_{e.name}",
            deps=[
                layout.PREPARED / e.dataset.name,
                *models(e),
                *(counterfactuals(e, name) for name in e.methods),
                *(metrics(e, name) for name in (*e.methods, ORIGINAL_DATA)),
                *(layout.TIMINGS / e.name / name for name in e.methods),
                *(training_times(e, "generators", name) for name in e.generators),
                *(training_times(e, "methods", name) for name in e.trained_methods()),
            ],
            parameters=[
                *((str(file), ()) for file, _ in chain(e.name)),
                *joined(
                    (str(file_of(shown)), ())
                    for shown in (
                        *self.project.boards(e.name),
                        *self.project.pareto_figures(e.name),
                    )
                ),
            ],
            outs=[layout.report(e.name), *animated, layout.RESULTS / e.name / "found"],
            reports=[cost.with_suffix(".csv"), cost.with_suffix(".md")],
        )

    def table(self, table: Table) -> Stage:
        """One table: `table_c3lt_1_mnist` for `c3lt-table1-mnist`."""
        experiments = [self.project.experiments[name] for name in table.experiments]
        views = [inputs.TableView(table, e) for e in experiments]
        rows = [(view.experiment, name) for view in views for name in view.methods]
        asked = [(view.experiment, name) for view in views for name in view.filtered]
        stem = layout.TABLES / table.name
        return self.stage(
            f"table_{stage_name(table.name, 'table')}",
            f"{stem}.csv" if table.ranked else table.name,
            deps=[
                *(metrics(e, name) for e, name in rows if views[0].judged),
                *(
                    layout.TIMINGS / e.name / name
                    for e, name in rows
                    if inputs.TIME.name in table.columns and name != ORIGINAL_DATA
                ),
                *(counterfactuals(e, name) for e, name in asked),
                *(path for view in views for path in models(view.experiment, view.methods)),
            ],
            parameters=[
                (str(file_of(table)), ()),
                *joined(pair for e in experiments for pair in parameters(e.name, "metrics")),
            ],
            reports=[stem.with_suffix(suffix) for suffix in (".html", ".md", ".tex")],
            metrics=[stem.with_suffix(".json")],
            plots=[stem.with_suffix(".csv")],
        )

    def figure(self, figure: Figure) -> Stage:
        """One figure: `figure_c3lt_5` for `c3lt-figure5`."""
        e = self.project.experiments[figure.experiment]
        shown = inputs.figure_methods(figure, e)
        judged = shown if figure.kind in ("cout", "parameter", "pareto") else ()
        drawn = shown if figure.kind not in ("parameter", "pareto") else ()
        return self.stage(
            f"figure_{stage_name(figure.name, 'figure')}",
            figure.name,
            deps=[
                *(counterfactuals(e, name) for name in drawn),
                *(metrics(e, name) for name in judged),
                *([layout.classifier(e.name)] if figure.kind == "tsne" else []),
            ],
            parameters=[(str(file_of(figure)), ())],
            outs=[layout.FIGURES / f"{figure.name}.png"],
        )


def own_code(used: Iterable[Options]) -> list[str]:
    """The files outside the package that define some of an experiment's parts."""
    found: list[str] = []
    for options in used:
        found += [options.kind] if options.kind.endswith(".py") else []
        found += options.files if isinstance(options, ClassifierOptions) else ()
    return list(dict.fromkeys(found))


def parts(e: Experiment) -> list[Options]:
    """Everything in an experiment that a file of its own defines."""
    several = (e.generators, e.oracles, e.methods)
    named = [options for section in several for options in section.values()]
    return [e.dataset, e.classifier, *named, *e.metrics]


def generator(e: Experiment, name: str) -> Path:
    """Folder of a generator on all its scopes."""
    return layout.RESULTS / e.name / "generators" / name


def needs_weights(e: Experiment) -> bool:
    """Whether any model of an experiment loads named weights."""
    return bool(e.classifier.named_weights) or any(o.weights for o in e.oracles.values())


def oracles(e: Experiment) -> Path:
    """Folder of the trained oracles."""
    return layout.RESULTS / e.name / "oracles"


def trained_method(e: Experiment, name: str) -> Path:
    """Folder of a trained method."""
    return layout.RESULTS / e.name / "methods" / name


def counterfactuals(e: Experiment, name: str) -> Path:
    """Folder of a method's counterfactual sets."""
    return layout.RESULTS / e.name / "counterfactuals" / name


def metrics(e: Experiment, name: str) -> Path:
    """Folder of a method's metrics."""
    return layout.RESULTS / e.name / "metrics" / name


def models(e: Experiment, methods: Iterable[str] | None = None) -> list[Path]:
    """The models whose cards the tables and reports show: those of all methods, or of some."""
    generators, trained = (
        (e.generators, e.trained_methods())
        if methods is None
        else (dict(found) for found in inputs.trainings(e, methods, e.pairs))
    )
    return [
        layout.classifier(e.name),
        *([oracles(e)] if inputs.trained_oracles(e) else []),
        *(generator(e, name) for name in generators),
        *(trained_method(e, name) for name in trained),
    ]


def chain(name: str) -> list[tuple[Path, dict[str, Any]]]:
    """An experiment's file and those that it extends."""
    found: list[tuple[Path, dict[str, Any]]] = []
    parent: str | None = name
    while parent is not None:
        path = CONFIG_DIR / "experiments" / f"{parent}.yaml"
        found.append((path, read_yaml(path)))
        parent = found[-1][1].get("extends")
    return found


def parameters(name: str, *sections: str) -> Parameters:
    """The keys of an experiment's files that shape a stage, as far as each file has them."""
    wanted = ("extends", "dataset", "seed", *sections)
    found = []
    for path, content in chain(name):
        small = [f"small.{key}" for key in wanted]
        keys = tuple(key for key in (*wanted, *small) if has(content, key))
        found.append((str(path), keys))
    return [(path, keys) for path, keys in found if keys]


def has(content: Any, key: str) -> bool:
    """Whether a dotted key stands in a mapping."""
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def joined(found: Iterable[tuple[str, tuple[str, ...]]]) -> Parameters:
    """Parameters with each file once."""
    files: dict[str, dict[str, None]] = {}
    for file, keys in found:
        files.setdefault(file, {}).update(dict.fromkeys(keys))
    return [(file, tuple(keys)) for file, keys in files.items()]


def training_times(e: Experiment, section: str, name: str) -> Path:
    """Folder of what the trainings of a generator or method took."""
    return layout.training_time(e.name, section, name, "any").parent


def file_of(shown: Table | Figure) -> Path:
    """The file that describes a table or figure, itself or as a variant."""
    section = "tables" if isinstance(shown, Table) else "figures"
    found = (p for p in (CONFIG_DIR / section).glob("*.yaml") if belongs(shown.name, p.stem))
    return max(found, key=lambda path: len(path.stem))


def belongs(name: str, stem: str) -> bool:
    """Whether a table or figure is that of a file or one of its variants."""
    return name == stem or name.startswith(f"{stem}-")


def stage_name(name: str, kind: str) -> str:
    """`c3lt_1_mnist` for `c3lt-table1-mnist`."""
    return re.sub(rf"-{kind}(?=\d)", "-", name).replace("-", "_")


def text() -> str:
    """All of `dvc.yaml`."""
    return HEADER + "\n".join(stage.text() for stage in Stages(Workflow({})).all())


if __name__ == "__main__":
    Path("dvc.yaml").write_text(text(), encoding="utf-8")
