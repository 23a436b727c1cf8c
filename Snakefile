"""Counterlens: from data to tables of visual counterfactual explanations.

Targets: `all` (default), `demo`, the name of any experiment, table or figure, and the groups that
dvc.yaml records, such as `classifiers_digits` (rules/dvc.smk). With `--resources`, name the target
first: `snakemake all --cores 8 --resources gpu=2`.
"""

from snakemake.utils import min_version

min_version("9.20")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/classifiers.smk"
include: "rules/oracles.smk"
include: "rules/generators.smk"
include: "rules/methods.smk"
include: "rules/metrics.smk"
include: "rules/reports.smk"
include: "rules/dvc.smk"


rule all:
    default_target: True
    input:
        project.all_targets(),
    localrule: True


rule demo:
    input:
        project.experiment_target("digits"),
    localrule: True
