"""Plugins are found by name; their options are read without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from counterlens import config, plugins
from counterlens.errors import UserError

BASES = {
    "data": (config.DatasetOptions, "Dataset"),
    "classifiers": (config.ClassifierOptions, "Classifier"),
    "generators": (config.GeneratorOptions, "Generator"),
    "oracles": (config.OracleOptions, "Oracle"),
    "methods": (config.MethodOptions, "Method"),
    "metrics": (config.MetricOptions, "Metric"),
}
SHIPPED = [(section, kind) for section in BASES for kind in plugins.known(section)]

MEAN_IMAGE = '''
"""A user's own method: every pixel becomes its image's mean."""
from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from counterlens.config import MethodOptions
from counterlens.methods.base import Explanation, Method

HALF = torch.tensor(0.5)


class Options(MethodOptions):
    """`strength`: 1 gives the mean image, 0 the query."""

    requires_gap: ClassVar[bool] = False
    strength: float = Field(default=1.0, ge=0, le=1)
    kind_of_mean: Literal["mean"] = "mean"


class MeanImage(Method):
    def explain(self, x, source, target, randomness):
        mean = x.mean((1, 2, 3), keepdim=True).expand_as(x)
        moved = torch.lerp(x, mean, self.options.strength)
        return Explanation(moved, torch.ones(len(x), dtype=torch.bool))
'''


def base_of(section: str) -> type:
    module = __import__(f"counterlens.{section}.base", fromlist=["base"])
    return getattr(module, BASES[section][1])


def test_every_section_ships_something() -> None:
    assert {section for section, _ in SHIPPED} == set(plugins.SECTIONS)
    assert {"c3lt", "pgd"} <= set(plugins.known("methods"))
    assert "fashion-mnist" in plugins.known("data")


def test_options_are_read_without_torch() -> None:
    script = (
        "import sys\n"
        "from counterlens import plugins\n"
        "for section in plugins.SECTIONS:\n"
        "    for kind in plugins.known(section):\n"
        "        options = plugins.options_class(section, kind)\n"
        "        assert options.__name__ == 'Options', (section, kind)\n"
        "        heavy = {'torch', 'torchvision', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "        assert not heavy, (section, kind, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("section", "kind"), SHIPPED)
def test_options_extend_the_section_s_own(section: str, kind: str) -> None:
    options = plugins.options_class(section, kind)
    assert issubclass(options, BASES[section][0])
    assert options.__doc__ and "kind" in options.model_fields
    assert options.model_config.get("extra") == "forbid" and options.model_config.get("frozen")


@pytest.mark.parametrize(("section", "kind"), SHIPPED)
def test_the_implementation_is_found(section: str, kind: str) -> None:
    found = plugins.implementation(section, kind, base_of(section))
    module = sys.modules[found.__module__]
    assert Path(str(module.__file__)) == plugins.source_file(section, kind)
    # the options read without the file's imports are those that the file defines
    own, read = module.Options, plugins.options_class(section, kind)
    assert own.model_json_schema() == read.model_json_schema()


def test_create_hands_over_options_and_arguments() -> None:
    base = base_of("metrics")
    options = plugins.options_class("metrics", "validity").model_validate({"kind": "validity"})
    context = object()
    metric = plugins.create("metrics", options, base, context)
    assert metric.context is context
    assert type(metric.options) is sys.modules[type(metric).__module__].Options
    assert metric.options.model_dump() == options.model_dump()


def test_a_user_s_own_file(tmp_path: Path) -> None:
    import torch

    from counterlens.methods.base import Method

    file = tmp_path / "mean_image.py"
    file.write_text(MEAN_IMAGE)
    options = plugins.options_class("methods", str(file)).model_validate(
        {"kind": str(file), "strength": 0.5}
    )
    assert plugins.source_file("methods", str(file)) == file
    method = plugins.create("methods", options, Method, None)
    x = torch.arange(8.0).reshape(2, 1, 2, 2) / 8
    answer = method.explain(x, None, None, [])
    torch.testing.assert_close(answer.counterfactual, (x + x.mean((1, 2, 3), keepdim=True)) / 2)
    assert method.options.strength == 0.5


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        plugins.source_file("methods", "dream")
    assert str(caught.value) == (
        f"'dream' is unknown; allowed: {', '.join(plugins.known('methods'))}, or path/to/file.py"
    )
    with pytest.raises(UserError, match=r"'absent/dream\.py': no such file"):
        plugins.source_file("methods", "absent/dream.py")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("nothing", "x = 1\n"),
        ("imported_only", "from counterlens.config import Options\n"),
        ("no_options", "class Options:\n    pass\n"),
    ],
)
def test_a_file_without_options_is_refused(name: str, source: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(source)
    with pytest.raises(UserError, match=rf"{name}\.py: defines no class Options"):
        plugins.options_class("methods", str(file))


@pytest.mark.parametrize(("name", "count"), [("none_at_all", 0), ("two_of_them", 2)])
def test_a_file_must_define_one_implementation(name: str, count: int, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.py"
    classes = [f"class M{n}(Method):\n    def explain(self, *a): ...\n" for n in range(count)]
    abstract = "class Half(Method):\n    pass\n"
    file.write_text("from counterlens.methods.base import Method\n" + abstract + "".join(classes))
    with pytest.raises(UserError, match=rf"must define exactly one Method, found {count}"):
        plugins.implementation("methods", str(file), base_of("methods"))
