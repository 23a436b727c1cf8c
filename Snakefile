"""Counterlens: from data to tables of visual counterfactual explanations.

Targets: `all` (default), `demo`, `data`, the name of any experiment, table or figure, and
`models_<dataset>` and `datasets_<dataset>` (rules/targets.smk).
"""

from snakemake.utils import min_version

min_version("9.20")


configfile: "config/config.yaml"


report: "rules/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/classifiers.smk"
include: "rules/oracles.smk"
include: "rules/generators.smk"
include: "rules/methods.smk"
include: "rules/metrics.smk"
include: "rules/reports.smk"
include: "rules/targets.smk"


rule all:
    default_target: True
    input:
        targets.all_targets(project),
    localrule: True


rule demo:
    input:
        targets.experiment_target(project, "digits"),
    localrule: True
