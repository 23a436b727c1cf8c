"""The benchmark measures what it says, on networks that are not trained."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from counterlens import layout
from counterlens.bench import bench
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment, Row, Table
from counterlens.data.formats.prepare import prepare
from counterlens.errors import UserError
from counterlens.experiments import load_experiment
from counterlens.generators import base as generators
from counterlens.methods import base as methods
from counterlens.methods.base import Explanation
from counterlens.methods.cem import CEM
from counterlens.runtime import files
from counterlens.runtime.training import save_model

CPU = torch.device("cpu")

EXPERIMENT = """
name: tiny
dataset: digits
seed: 1
pairs: [[4, 9], [3, 8]]
classifier: {kind: lenet}
generators:
  dcgan: {kind: dcgan, latent_dim: 8, width: 2}
  encoder: {kind: dcgan-encoder, generator: dcgan, latent_dim: 8, width: 2}
methods:
  c3lt: {kind: c3lt, generator: dcgan, encoder: encoder}
  untrained: {kind: c3lt, generator: dcgan, encoder: encoder}
  elsewhere: {kind: pgd, epsilon: 0.1, pairs: [[3, 8]]}
  pgd: {kind: pgd, epsilon: 0.5, step_size: 0.2, steps: 3}
evaluation: {images: 5}
"""


class StandIn:
    """What bench uses of torchattacks."""

    def __init__(
        self, model: nn.Module, eps: float, alpha: float, steps: int, random_start: bool
    ) -> None:
        self.model, self.eps, self.alpha, self.steps = model, eps, alpha, steps
        self.random_start, self.targeted = random_start, False

    def set_mode_targeted_by_label(self, quiet: bool) -> None:
        self.targeted = True

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        assert self.targeted and self.random_start and self.steps == 3
        moved = (images + self.eps * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        for _ in range(self.steps):
            moved.requires_grad_(True)
            loss = nn.functional.cross_entropy(self.model(moved), labels)
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() - self.alpha * gradient.sign()
            moved = (images + (moved - images).clamp(-self.eps, self.eps)).clamp(0, 1)
        return moved


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Everything that `c3lt` and `pgd` need for the pair 4-9."""
    monkeypatch.chdir(tmp_path)
    files.write_text(Path("config/experiments/tiny.yaml"), EXPERIMENT)
    found = load_experiment("tiny", "small")
    prepare(found.dataset, layout.raw("digits"), layout.PREPARED / "digits")
    torch.manual_seed(2)  # of a classifier that an attack turns to 9
    save_model(classifiers.model_file(found), classifiers.create(found))
    for name, scope in (("dcgan", "all-classes"), ("encoder", "4-9")):
        save_model(generators.model_file(found, name, scope), generators.create(found, name))
    trained = methods.create(found, "c3lt", "4-9", CPU).trained()
    save_model(layout.method("tiny", "c3lt", "4-9") / "model.safetensors", trained)
    return found


@pytest.fixture
def torchattacks(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    module = ModuleType("torchattacks")
    attack = type("PGD", (StandIn,), {})
    setattr(module, "PGD", attack)  # noqa: B010
    setattr(module, "__version__", "0")  # noqa: B010
    monkeypatch.setitem(sys.modules, "torchattacks", module)
    return attack


def test_every_available_method_is_measured(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench.run(experiment, CPU, images=4, repeats=2)
    assert json.loads(Path("results/benchmarks/tiny.json").read_text()) == result
    assert (result["direction"], result["images"], result["repeats"]) == ([4, 9], 4, 2)
    assert set(result["methods"]) == {"c3lt", "pgd"}
    for entry in result["methods"].values():
        assert entry["seconds_per_image"] > 0
        assert entry["bare"]["seconds_per_image"] > 0
        assert entry["bare"]["ratio"] > 0
        assert "peer" not in entry
    assert result["methods"]["pgd"]["bare"]["passes"].startswith("3 x")
    assert "untrained/4-9/model.safetensors: no such file" in result["skipped"]["untrained"]
    assert result["skipped"]["elsewhere"] == "is not run on the pair 4-9"
    printed = capsys.readouterr().out
    assert all(name in printed for name in experiment.methods)


def test_methods_may_be_chosen(experiment: Experiment) -> None:
    result = bench.run(experiment, CPU, "4-9", 2, 1, methods=["pgd"])
    assert set(result["methods"]) == {"pgd"}
    assert not result["skipped"]


def test_a_method_beside_another(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench.run(experiment, CPU, "4-9", 2, 1, methods=["c3lt", "pgd"], beside="c3lt")
    assert "beside" not in result["methods"]["c3lt"]
    found = result["methods"]["pgd"]["beside"]
    assert found["name"] == "c3lt" and found["ratio"] > 0 and found["seconds_per_image"] > 0
    assert "x the time of c3lt" in capsys.readouterr().out


def test_networks_need_no_training(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(layout.RESULTS / "tiny")
    result = bench.run(experiment, CPU, "4-9", 2, 1, untrained=True)
    assert set(result["methods"]) == {"c3lt", "untrained", "pgd"} and result["untrained"]
    assert "untrained networks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beside": "nope"}, "--beside nope: unknown; allowed: c3lt, "),
        ({"pair": "4_9"}, "--pair 4_9: experiment tiny has 4-9, 3-8"),
        ({"methods": ["nope"]}, "--method nope: unknown; allowed: c3lt, "),
        ({"images": 0}, "at least 1"),
        ({"repeats": 0}, "at least 1"),
        ({"sequential": -1}, "neither may be negative"),
        ({"methods": ["untrained"]}, "nothing to measure: untrained: results/tiny/methods"),
    ],
)
def test_mistakes_are_told_in_one_line(
    experiment: Experiment, arguments: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        bench.run(experiment, CPU, **arguments)
    assert "\n" not in str(error.value)
    assert not Path("results/benchmarks").exists()


def test_a_missing_peer_is_told_before_anything_runs(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(UserError, match="--peer torchattacks: is not installed here"):
        bench.run(experiment, CPU, peer="torchattacks")


def test_pgd_is_compared_with_the_peer(
    experiment: Experiment, torchattacks: type[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench.run(experiment, CPU, images=8, repeats=2, peer="torchattacks")
    peer = result["methods"]["pgd"]["peer"]
    assert (peer["name"], peer["version"], peer["agree"]) == ("torchattacks", "0", True)
    assert peer["validity"] == {"ours": 1, "peer": 1}
    assert peer["ratio"] > 0
    assert "peer" not in result["methods"]["c3lt"]
    assert "torchattacks 0 (validity" in capsys.readouterr().out


def test_a_peer_with_another_result_gives_no_ratio(
    experiment: Experiment,
    torchattacks: type[StandIn],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = iter([1.0, 0.9])
    monkeypatch.setattr(bench, "_validity", lambda *arguments: next(found))
    result = bench.run(experiment, CPU, images=8, repeats=1, peer="torchattacks")
    peer = result["methods"]["pgd"]["peer"]
    assert not peer["agree"]
    assert "ratio" not in peer
    assert "not comparable with torchattacks" in capsys.readouterr().out


SEARCHES = """
  cem: {kind: cem, autoencoder: cem-autoencoder, search_steps: 3, iterations: 40}
  cve: {kind: cve, cell: 2, per_class: 20}
"""


@pytest.fixture
def searching(experiment: Experiment) -> Experiment:
    """The experiment with both searches, ready to explain the pair 4-9."""
    text = EXPERIMENT.replace("\nevaluation", SEARCHES.rstrip() + "\nevaluation")
    autoencoder = "  cem-autoencoder: {kind: cem-autoencoder, width: 4}\nmethods:"
    files.write_text(Path("config/experiments/tiny.yaml"), text.replace("methods:", autoencoder, 1))
    found = load_experiment("tiny", "small")
    save_model(
        generators.model_file(found, "cem-autoencoder", "all-classes"),
        generators.create(found, "cem-autoencoder"),
    )
    bank = methods.create(found, "cve", "4-9", CPU).trained()
    bank.get_buffer("images").random_(0, 256)
    bank.get_buffer("count").fill_(20)
    save_model(layout.method("tiny", "cve", "4-9") / "model.safetensors", bank)
    return found


def test_searches_are_compared_with_those_of_single_images(
    searching: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench.run(
        searching, CPU, images=6, repeats=1, methods=["cem", "cve", "pgd"], sequential=3, warm_up=0
    )
    assert result["warm_up"] == 0 and "sequential" not in result["methods"]["pgd"]
    for name in ("cem", "cve"):
        entry = result["methods"][name]
        alone = entry["sequential"]
        assert (alone["images"], alone["agree"]) == (3, True)
        assert alone["seconds_per_image"] > 0 and alone["speed_up"] > 0
    assert result["methods"]["cem"]["bare"]["passes"].startswith("120 x")
    printed = capsys.readouterr().out
    assert printed.count("x the images per second of the search one image at a time") == 2
    assert "100% of 3 images the same, " in printed


def test_another_result_gives_no_speed_up(
    searching: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = bench.references.cve
    monkeypatch.setattr(bench.references, "cve", lambda *given: 1 - original(*given))
    result = bench.run(searching, CPU, images=2, repeats=1, methods=["cve"], sequential=2)
    alone = result["methods"]["cve"]["sequential"]
    assert not alone["agree"] and "speed_up" not in alone
    assert "not comparable with the search one image at a time (0% of 2" in capsys.readouterr().out


def test_searches_that_find_nothing_agree_on_nothing(
    searching: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(self: CEM, x: Tensor, *_: object) -> Explanation:
        return Explanation(torch.full_like(x, 0.5), torch.zeros(len(x), dtype=torch.bool))

    monkeypatch.setattr(CEM, "explain", nothing)
    monkeypatch.setattr(bench.references, "cem", lambda method, x, *_: torch.full_like(x, 0.5))
    result = bench.run(searching, CPU, images=2, repeats=1, methods=["cem"], sequential=2)
    alone = result["methods"]["cem"]["sequential"]
    assert (alone["same"], alone["found"], alone["agree"]) == (1.0, 0, False)
    assert "not comparable with the search one image at a time" in capsys.readouterr().out


def test_the_papers_times_stand_beside_ours(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(
        name="times",
        title="Times",
        rows=(Row(method="c3lt", label="C3LT"), Row(method="pgd", label="Attack")),
        columns=("milliseconds",),
        experiments=("tiny",),
        paper_values={"tiny": {"c3lt": {"milliseconds": 8.0}}},
    )
    result = bench.run(experiment, CPU, images=4, repeats=1, table=table)
    assert set(result["methods"]) == {"c3lt", "pgd"} and not result["skipped"]
    assert result["methods"]["c3lt"]["paper_seconds_per_image"] == 0.008
    assert "paper 0.008 s" in capsys.readouterr().out
    rows = Path("results/benchmarks/times.md").read_text().splitlines()
    assert rows[4].startswith("| C3LT | 4 | ") and rows[4].endswith(" | - | 8 |")
    assert rows[5].startswith("| Attack | 4 | ") and rows[5].endswith(" | - | - |")
    elsewhere = table.model_copy(update={"experiments": ("digits",)})
    with pytest.raises(UserError, match="--table times: is no table of times about tiny"):
        bench.run(experiment, CPU, table=elsewhere)


def test_a_method_with_fewer_images_is_measured_on_those(experiment: Experiment) -> None:
    text = EXPERIMENT.replace("steps: 3}", "steps: 3, images: 2}")
    files.write_text(Path("config/experiments/tiny.yaml"), text)
    result = bench.run(load_experiment("tiny", "small"), CPU, images=4, repeats=1)
    assert {name: entry["images"] for name, entry in result["methods"].items()} == {
        "c3lt": 4,
        "pgd": 2,
    }


def test_bfloat16_is_compared_with_float32(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    text = EXPERIMENT.replace(
        "methods:",
        "  ddpm: {kind: ddpm, channels: [8], steps: 50, explanation_precision: bf16}\n"
        "oracles: {feature-extractor: {kind: feature-extractor}}\n"
        "methods:\n  ace: {kind: ace, iterations: 3, step_size: 0.1, l1: 0}",
    )
    files.write_text(Path("config/experiments/tiny.yaml"), text)
    found = load_experiment("tiny", "small")
    save_model(
        generators.model_file(found, "ddpm", "all-classes"), generators.create(found, "ddpm")
    )
    judge = layout.oracle("tiny", "feature-extractor") / "model.safetensors"
    save_model(judge, classifiers.create(found))

    result = bench.run(found, CPU, images=4, repeats=1, methods=["ace", "pgd"], warm_up=0)
    exact = result["methods"]["ace"]["float32"]
    assert exact["ratio"] > 0 and "float32" not in result["methods"]["pgd"]
    distance = exact["lpips_oracle"]
    assert distance["ours"] > 0 and distance["ours"] != distance["float32"]
    assert distance["ours"] == pytest.approx(distance["float32"], rel=0.2)
    assert set(exact["validity"]) == {"ours", "float32"}
    assert "x itself in float32 (validity " in capsys.readouterr().out


def test_the_ratio_is_of_images_per_second() -> None:
    seconds = {"ours": [2.0, 1.0, 4.0], "sequential": [6.0, 6.0, 6.0]}
    found = bench._speed_up(seconds, images=10, sequential=3)
    assert found == {"seconds_per_image": 2.0, "speed_up": 10.0}


def test_order_turns_round_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    rivals = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = bench.interleaved(rivals, 3, CPU)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(order) == "baabbaabbaab"


def test_no_round_begins_after_the_time_is_over() -> None:
    calls: list[str] = []
    seconds = bench.interleaved({"a": lambda: calls.append("a")}, 5, CPU, warm_up=3, at_most=0.0)
    assert calls == ["a"] and len(seconds["a"]) == 1
