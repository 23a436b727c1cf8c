"""Which files a target stands for: `all`, a table, a figure, an experiment, a dataset's models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterlens import layout
from counterlens.config import pair_name
from counterlens.generators.parts.diffusion_options import DiffusionOptions
from counterlens.plan import inputs

if TYPE_CHECKING:
    from counterlens.plan.plan import Plan


def named_targets(plan: Plan) -> dict[str, list[str]]:
    """Files by target name: tables, figures, experiments, and all models of a dataset."""
    targets = {name: [f"{layout.TABLES}/{name}.csv"] for name in plan.tables}
    targets |= {name: [f"{layout.FIGURES}/{name}.png"] for name in plan.figures}
    targets |= {name: experiment_target(plan, name) for name in plan.experiments}
    targets |= {name: board_target(plan, name) for name, t in plan.tables.items() if t.ranked}
    targets |= {f"models_{name}": models_target(plan, name) for name in plan.models}
    targets |= {f"datasets_{name}": plan.prepared(name) for name in plan.datasets}
    listed = dict.fromkeys(plan.models[name].dataset.name for name in plan.config.models)
    targets["data"] = [
        *(file for name in listed for file in plan.prepared(name)),
        *dict.fromkeys(file for name in plan.config.models for file in weights(plan, name)),
    ]
    return targets


def all_targets(plan: Plan) -> list[str]:
    """What `all` builds: the experiments, tables and figures that config.yaml lists."""
    files = [f for name in plan.config.experiments for f in experiment_target(plan, name)]
    files += [f"{layout.TABLES}/{name}.csv" for name in plan.config.tables]
    return [*files, *(f"{layout.FIGURES}/{name}.png" for name in plan.config.figures)]


def experiment_target(plan: Plan, name: str) -> list[str]:
    """An experiment's report, costs, animations, Pareto figures, found images and tables."""
    own = [table for table, content in plan.tables.items() if content.experiments == (name,)]
    tables = [f"{layout.TABLES}/{table}.csv" for table in (*own, f"{name}-cost")]
    figures = [f"{layout.FIGURES}/{figure.name}.png" for figure in plan.pareto_figures(name)]
    found = [str(path) for path in inputs.found_files(plan.experiments[name])]
    return [str(layout.report(name)), *tables, *figures, *animations(plan, name), *found]


def board_target(plan: Plan, table: str) -> list[str]:
    """A ranked table, and all about its experiments."""
    names = plan.tables[table].experiments
    about = [file for name in names for file in experiment_target(plan, name)]
    return list(dict.fromkeys([f"{layout.TABLES}/{table}.csv", *about]))


def models_target(plan: Plan, name: str) -> list[str]:
    """All of a dataset's models that any experiment uses, and the records of weights."""
    models = plan.models[name]
    users = [e for e in plan.experiments.values() if e.models.name == name]
    asked = {e.classifier: None for e in users}
    scopes = {(g, scope): None for e in users for g in e.generators for scope in e.scopes(g)}
    for generator, _ in scopes:
        if (classifier := models.generators[generator].classifier) is not None:
            asked[classifier] = None
    folders = [
        *(layout.classifier(name, classifier) for classifier in asked),
        *(layout.generator(name, *scope) for scope in scopes),
    ]
    oracles = dict.fromkeys(o for e in users for o in e.oracles)
    return [
        *(str(folder / "model.safetensors") for folder in folders),
        *(file for oracle in oracles for file in plan.oracle_files(models, oracle)),
        *(
            str(layout.generator(name, *scope) / "diffusers/model_index.json")
            for scope in scopes
            if isinstance(models.generators[scope[0]], DiffusionOptions)
        ),
    ]


def weights(plan: Plan, models: str) -> list[str]:
    """The records of the pretrained weights that models load."""
    m = plan.models[models]
    named = [w for options in m.classifiers.values() for w in options.named_weights]
    named += [w for options in m.oracles.values() for w in options.weights]
    return [str(layout.weight(weight)) for weight in dict.fromkeys(named)]


def animations(plan: Plan, name: str) -> list[str]:
    """The folders of an experiment's animations."""
    e = plan.experiments[name]
    return [
        str(layout.animations(name, method, e.dataset.name, pair_name(pair)))
        for method in e.methods
        if e.methods[method].animated and e.evaluation.animations
        for pair in e.method_pairs(method)
    ]
