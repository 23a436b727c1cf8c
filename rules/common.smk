# The project as its config files describe it, validated before any job starts.

import sys

sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from counterlens.errors import UserError
from counterlens.plan import targets
from counterlens.plan.plan import Plan

try:
    project = Plan(config)
except UserError as error:
    raise WorkflowError(str(error))


wildcard_constraints:
    dataset="|".join(project.datasets),
    models="|".join(project.models),
    experiment="|".join(project.experiments),
    classifier=project.ids("classifiers"),
    oracle=project.ids("oracles"),
    generator=project.ids("generators"),
    method=project.ids("methods"),
    scope=r"all-classes|all-pairs|\d+-\d+",
    source=r"\d+",
    target=r"\d+",
    shard=r"\d+",
    of=r"\d+",
    table="|".join(project.tables),
    figure="|".join(project.figures),
