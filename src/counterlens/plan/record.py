"""Stage `record`: what a target was made from, recorded by DVC beside the target itself.

A stage of `dvc.yaml` makes one target, and Snakemake whatever it needs on the way. Unrecorded, that
would be lost to `dvc push`, and `dvc checkout` would ask to delete it.
"""

from __future__ import annotations

import subprocess

from counterlens import layout
from counterlens.errors import UserError
from counterlens.plan.plan import Plan


def stages_behind(plan: Plan, target: str) -> list[str]:
    """The stages of `dvc.yaml` that own what a target is made from, those listed in config.yaml.

    Raises:
        UserError: it is no table, figure, experiment or set of models.
    """
    if target in plan.tables:
        experiments = plan.tables[target].experiments
    elif target in plan.figures:
        experiments = (plan.figures[target].experiment,)
    elif target in plan.experiments:
        experiments = (target,)
    elif target.removeprefix("models_") in plan.models:
        experiments = ()
    else:
        raise UserError(f"record: '{target}' is no table, figure, experiment or models_<dataset>")
    models = {plan.experiments[name].models.name for name in experiments}
    behind = ["data", *(f"models@{name}" for name in plan.config.models if name in models)]
    listed = [name for name in plan.config.experiments if name in experiments and name != target]
    return [*behind, *(f"experiment@{name}" for name in listed), "provenance"]


def run(plan: Plan, target: str) -> None:
    """Have DVC record the stages behind a target, as far as they are made.

    Raises:
        UserError: DVC could not.
    """
    stages = stages_behind(plan, target)
    folders = [layout.RAW, layout.PREPARED, layout.WEIGHTS]
    for stage in stages:
        kind, _, name = stage.partition("@")
        if kind == "models":
            folders += [layout.MODELS / name, layout.TIMINGS / "models" / name]
        elif kind == "experiment":
            folders += [layout.RESULTS / name, layout.TIMINGS / name]
    for folder in folders:  # of digits nothing is downloaded, an attack alone trains nothing
        folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["dvc", "commit", "--force", "--quiet", *stages], check=False)
    if done.returncode:
        raise UserError(f"record: dvc commit --force {' '.join(stages)}: failed")
