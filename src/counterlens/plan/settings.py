"""The part of the configuration that shapes a job's result, by the key that its rule names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from counterlens.config import ALL_PAIRS, Experiment
from counterlens.plan import inputs

if TYPE_CHECKING:
    from counterlens.plan.plan import Plan


def setting(plan: Plan, key: str, wildcards: Any) -> object:
    """What one key of a rule's `settings` stands for, as plain JSON values.

    Of models: `classifiers.<id>`, `generators.<id>`, `oracles.<id>`. Of an experiment:
    `methods.<id>` (all but the pairs), `methods.<id>.training`, `evaluation`, `metrics`, `filters`
    (which methods its filtered tables ask) and `experiment` (all that its report shows). And
    `tables.<name>`, `figures.<name>`.
    """
    section, _, name = key.partition(".")
    if section == "tables":
        table = plan.tables[name]
        metrics = [plan.experiments[each].settings("metrics") for each in table.experiments]
        return [table.model_dump(mode="json"), metrics, plan.scale]
    if section == "figures":
        return plan.figures[name].model_dump(mode="json")
    if section in ("classifiers", "generators", "oracles"):
        return plan.models[wildcards.models].settings(section, name)
    e = plan.experiments[wildcards.experiment]
    if section == "methods":
        return of_method(e, *name.split("."))
    if section == "filters":
        return filters(plan, e)
    if section == "experiment":
        shown = [e, *plan.boards(e.name), *plan.pareto_figures(e.name)]
        return [each.model_dump(mode="json") for each in shown]
    return e.settings(section)


def of_method(e: Experiment, method: str, part: str = "explanation") -> object:
    """A method's options, whichever pairs it is run on; those of its training, with joint pairs."""
    content = e.settings("methods", method)
    if part == "training":
        content["methods"][method] = e.methods[method].training()
        content["pairs"] = e.training_scopes(method).get(ALL_PAIRS)
    else:
        content["methods"][method].pop("pairs")
    return content


def filters(plan: Plan, e: Experiment) -> dict[str, tuple[str, ...]]:
    """The methods that each filtered table about the experiment asks."""
    asked = {
        table.name: inputs.TableView(table, e).filtered
        for table in plan.tables.values()
        if e.name in table.experiments
    }
    return {table: methods for table, methods in asked.items() if methods}


def canonical(content: object) -> str:
    """JSON with sorted keys."""
    return json.dumps(content, sort_keys=True)
