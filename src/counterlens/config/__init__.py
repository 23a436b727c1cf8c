"""Typed model of every YAML file under `config/`; one clear error per mistake.

Nothing here imports torch: the workflow validates every experiment before any job starts.
"""

from counterlens.config.experiment import ALL_PAIRS, ORIGINAL_DATA, Evaluation, Experiment
from counterlens.config.files import CONFIG_DIR, merge, read_yaml
from counterlens.config.models import ALL_CLASSES, Models, Scale
from counterlens.config.options import (
    ClassifierOptions,
    Column,
    DatasetOptions,
    GeneratorOptions,
    Identifier,
    MethodOptions,
    MetricOptions,
    Model,
    Options,
    OracleOptions,
    Pair,
    Ratio,
    latents_differ,
    pair_name,
    parse_pair,
    too_small,
)
from counterlens.config.project import Project, load_project
from counterlens.config.reports import (
    Claim,
    Figure,
    Row,
    Table,
    figure_names,
    load_figure,
    load_table,
    table_names,
)

__all__ = [
    "ALL_CLASSES",
    "ALL_PAIRS",
    "CONFIG_DIR",
    "ORIGINAL_DATA",
    "Claim",
    "ClassifierOptions",
    "Column",
    "DatasetOptions",
    "Evaluation",
    "Experiment",
    "Figure",
    "GeneratorOptions",
    "Identifier",
    "MethodOptions",
    "MetricOptions",
    "Model",
    "Models",
    "Options",
    "OracleOptions",
    "Pair",
    "Project",
    "Ratio",
    "Row",
    "Scale",
    "Table",
    "figure_names",
    "latents_differ",
    "load_figure",
    "load_project",
    "load_table",
    "merge",
    "pair_name",
    "parse_pair",
    "read_yaml",
    "table_names",
    "too_small",
]
