"""The benchmark measures what it says, on networks that are not trained."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterlens import layout
from counterlens.bench import bench, measure
from counterlens.bench.measure import Rounds
from counterlens.bench.settings import Settings
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment, Row, Table
from counterlens.data.formats.prepare import prepare
from counterlens.errors import UserError
from counterlens.experiments import load_experiment
from counterlens.generators import base as generators
from counterlens.methods import base as methods
from counterlens.methods.base import Explanation
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


SEARCHES = """
  cem: {kind: cem, autoencoder: cem-autoencoder, search_steps: 3, iterations: 40}
  cve: {kind: cve, cell: 2, per_class: 20}
"""
REFERENCES = Path(__file__).parents[1] / "methods" / "references.py"


class Thresholding:
    """What `results` uses of a method: a classifier whose class 1 are the bright images."""

    def __init__(self) -> None:
        self.task = self.classifier = self

    def probabilities(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x.mean(dim=(1, 2, 3)) > 0.5).long(), 10).float()


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
        assert self.targeted and self.steps == 3
        noise = 2 * torch.rand_like(images) - 1 if self.random_start else torch.zeros_like(images)
        moved = (images + self.eps * noise).clamp(0, 1)
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
    loaded = load_experiment("tiny", "small")
    prepare(loaded.dataset, layout.raw("digits"), layout.PREPARED / "digits")
    torch.manual_seed(2)  # of a classifier that an attack turns to 9
    save_model(
        classifiers.model_file(loaded.models, "lenet"), classifiers.create(loaded.models, "lenet")
    )
    for name, scope in (("dcgan", "all-classes"), ("encoder", "4-9")):
        save_model(
            generators.model_file(loaded.models, name, scope),
            generators.create(loaded.models, name),
        )
    trained = methods.create(loaded, "c3lt", "4-9", CPU).trained()
    save_model(layout.method("tiny", "c3lt", "4-9") / "model.safetensors", trained)
    return loaded


@pytest.fixture
def torchattacks(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    module = ModuleType("torchattacks")
    attack = type("PGD", (StandIn,), {})
    setattr(module, "PGD", attack)  # noqa: B010
    setattr(module, "__version__", "0")  # noqa: B010
    monkeypatch.setitem(sys.modules, "torchattacks", module)
    return attack


def ask(experiment: Experiment, images: int = 2, repeats: int = 1, **settings: Any) -> dict:
    rounds = Rounds(repeats, warm_up=0)
    return bench.run(experiment, CPU, Settings(images=images, rounds=rounds, **settings))


def test_every_available_method_is_measured(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ask(experiment, images=4, repeats=2)
    assert json.loads(Path("results/benchmarks/tiny.json").read_text()) == result
    assert (result["direction"], result["repeats"], result["warm_up"]) == ([4, 9], 2, 0)
    assert set(result["methods"]) == {"c3lt", "pgd"}
    for entry in result["methods"].values():
        assert entry["images"] == 4 and entry["seconds_per_image"] > 0
        assert entry["bare"]["seconds_per_image"] > 0
        assert entry["bare"]["ratio"] > 0
        assert "peer" not in entry
    assert result["methods"]["pgd"]["bare"]["name"].startswith("3 x")
    assert "untrained/4-9/model.safetensors: no such file" in result["skipped"]["untrained"]
    assert result["skipped"]["elsewhere"] == "is not run on the pair 4-9"
    printed = capsys.readouterr().out
    assert all(name in printed for name in experiment.methods)


def test_methods_may_be_chosen(experiment: Experiment) -> None:
    result = ask(experiment, pair="4-9", methods=["pgd"])
    assert set(result["methods"]) == {"pgd"}
    assert not result["skipped"]


def test_a_method_beside_another(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ask(experiment, methods=["c3lt", "pgd"], beside="c3lt")
    assert "beside" not in result["methods"]["c3lt"]
    other = result["methods"]["pgd"]["beside"]
    assert other["name"] == "c3lt" and other["ratio"] > 0 and other["seconds_per_image"] > 0
    assert set(other["results"]) == {"validity", "mean change"}
    assert "x the time of c3lt (validity " in capsys.readouterr().out


def test_networks_need_no_training(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(layout.RESULTS / "tiny")
    result = ask(experiment, untrained=True)
    assert set(result["methods"]) == {"c3lt", "untrained", "pgd"} and result["untrained"]
    assert "untrained networks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beside": "nope"}, "--beside nope: unknown; allowed: c3lt, "),
        ({"pair": "4_9"}, "--pair 4_9: experiment tiny has 4-9, 3-8"),
        ({"methods": ["nope"]}, "--method nope: unknown; allowed: c3lt, "),
        ({"images": 0}, "--images 0: must be at least 1"),
        ({"repeats": 0}, "--repeats 0: must be at least 1"),
        ({"peer_images": 0}, "--peer-images 0: must be at least 1"),
        ({"peers": ["nope"]}, "--peer nope: no such file; allowed: torchattacks, or "),
        ({"peers": ["empty.py"]}, "--peer empty.py: has no function named as a kind of method"),
        ({"methods": ["untrained"]}, "nothing to measure: untrained: results/tiny/methods"),
    ],
)
def test_mistakes_are_told_in_one_line(
    experiment: Experiment, arguments: dict, message: str
) -> None:
    Path("empty.py").write_text("from math import cos\n")
    with pytest.raises(UserError, match=message) as error:
        ask(experiment, **arguments)
    assert "\n" not in str(error.value)
    assert not Path("results/benchmarks").exists()


def test_a_missing_peer_is_told_before_anything_runs(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(UserError, match="--peer torchattacks: is not installed here"):
        ask(experiment, peers=["torchattacks"])


def test_pgd_is_compared_with_torchattacks(
    experiment: Experiment, torchattacks: type[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    result = ask(experiment, images=8, repeats=2, peers=[str(REFERENCES), "torchattacks"])
    peer = result["methods"]["pgd"]["peer"]
    assert (peer["name"], peer["images"], peer["agree"]) == ("torchattacks 0", 8, True)
    assert peer["results"]["validity"] == {"ours": 1, "theirs": 1}
    assert peer["ratio"] > 0
    assert "peer" not in result["methods"]["c3lt"]
    assert "x the images per second of torchattacks 0 (8 images; " in capsys.readouterr().out


def test_torchattacks_is_asked_as_pgd_asks(
    experiment: Experiment, torchattacks: type[StandIn]
) -> None:
    """With [0, 1] images for a network of [-1, 1] too."""
    text = EXPERIMENT.replace("steps: 3}", "steps: 3, random_start: false, feed_unnormalised: X}")
    answers = []
    for value in ("false", "true"):
        files.write_text(Path("config/experiments/tiny.yaml"), text.replace("X", value))
        result = ask(
            load_experiment("tiny", "small"), images=8, methods=["pgd"], peers=["torchattacks"]
        )
        answers.append(result["methods"]["pgd"]["peer"]["results"])
        assert answers[-1]["mean change"]["ours"] == answers[-1]["mean change"]["theirs"]
    assert answers[0] != answers[1]


def test_a_peer_with_another_result_gives_no_ratio(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("lazy.py").write_text("def pgd(method, x, source, target, randomness): return x\n")
    result = ask(experiment, images=8, methods=["pgd"], peers=["lazy.py"])
    peer = result["methods"]["pgd"]["peer"]
    assert not peer["agree"] and peer["results"]["mean change"]["theirs"] == 0
    assert "ratio" not in peer and "seconds_per_image" not in peer
    assert "not comparable with lazy.py (8 images; validity 1.000 and 0" in capsys.readouterr().out


@pytest.fixture
def searching(experiment: Experiment) -> Experiment:
    """The experiment with both searches, ready to explain the pair 4-9."""
    text = EXPERIMENT.replace("\nevaluation", SEARCHES.rstrip() + "\nevaluation")
    autoencoder = "  cem-autoencoder: {kind: cem-autoencoder, width: 4}\nmethods:"
    files.write_text(Path("config/experiments/tiny.yaml"), text.replace("methods:", autoencoder, 1))
    loaded = load_experiment("tiny", "small")
    save_model(
        generators.model_file(loaded.models, "cem-autoencoder", "all-classes"),
        generators.create(loaded.models, "cem-autoencoder"),
    )
    bank = methods.create(loaded, "cve", "4-9", CPU).trained()
    bank.get_buffer("images").random_(0, 256)
    bank.get_buffer("count").fill_(20)
    save_model(layout.method("tiny", "cve", "4-9") / "model.safetensors", bank)
    return loaded


def test_searches_are_compared_with_the_published_ones(
    searching: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ask(
        searching, 6, methods=["cem", "cve", "pgd"], peers=[str(REFERENCES)], peer_images=3
    )
    assert "peer" not in result["methods"]["pgd"]
    for name in ("cem", "cve"):
        peer = result["methods"][name]["peer"]
        assert (peer["images"], peer["agree"]) == (3, True)
        assert peer["seconds_per_image"] > 0 and peer["ratio"] > 0
    assert result["methods"]["cem"]["bare"]["name"].startswith("120 x")
    assert capsys.readouterr().out.count(f"x the images per second of {REFERENCES} (3 images") == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "found", "agree"),
    [(0.6, 0.8, True, True), (0.6, 0.8, False, False), (0.6, 0.2, True, False)],
)
def test_results_agree_where_as_many_are_valid_and_some_are_found(
    ours: float, theirs: float, found: bool, agree: bool
) -> None:
    x = torch.zeros(2, 1, 28, 28)
    batch = measure.Batch(x, torch.zeros(2).long(), torch.ones(2).long(), [], [])
    answer = Explanation(torch.cat([x, x]) + ours, torch.tensor([found, False, True, True]))
    judged = measure.results(Thresholding(), batch, answer, x + theirs)  # type: ignore[arg-type]
    assert judged["agree"] == agree
    assert judged["results"]["validity"] == {"ours": ours > 0.5, "theirs": theirs > 0.5}
    assert judged["results"]["mean change"]["theirs"] == pytest.approx(theirs)


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
    result = ask(experiment, images=4, table=table)
    assert set(result["methods"]) == {"c3lt", "pgd"} and not result["skipped"]
    assert result["methods"]["c3lt"]["paper_seconds_per_image"] == 0.008
    assert "paper 0.008 s" in capsys.readouterr().out
    rows = Path("results/benchmarks/times.md").read_text().splitlines()
    assert rows[4].startswith("| C3LT | 4 | ") and rows[4].endswith(" | - | 8 |")
    assert rows[5].startswith("| Attack | 4 | ") and rows[5].endswith(" | - | - |")
    elsewhere = table.model_copy(update={"experiments": ("digits",)})
    with pytest.raises(UserError, match="--table times: is no table of times about tiny"):
        ask(experiment, table=elsewhere)


def test_a_method_with_fewer_images_is_measured_on_those(experiment: Experiment) -> None:
    text = EXPERIMENT.replace("steps: 3}", "steps: 3, images: 2}")
    files.write_text(Path("config/experiments/tiny.yaml"), text)
    result = ask(load_experiment("tiny", "small"), images=4)
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
    loaded = load_experiment("tiny", "small")
    save_model(
        generators.model_file(loaded.models, "ddpm", "all-classes"),
        generators.create(loaded.models, "ddpm"),
    )
    judge = layout.oracle("tiny", "feature-extractor") / "model.safetensors"
    save_model(judge, classifiers.create(loaded.models, "lenet"))

    result = ask(loaded, images=4, methods=["ace", "pgd"])
    exact = result["methods"]["ace"]["float32"]
    assert exact["ratio"] > 0 and "float32" not in result["methods"]["pgd"]
    distance = exact["results"]["LPIPS-oracle"]
    assert distance["ours"] > 0 and distance["ours"] != distance["theirs"]
    assert distance["ours"] == pytest.approx(distance["theirs"], rel=0.2)
    assert set(exact["results"]) == {"validity", "mean change", "LPIPS-oracle"}
    assert "x the time of itself in float32 (validity " in capsys.readouterr().out


def test_the_ratio_is_of_seconds_per_image(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"ours": [20.0, 10.0, 40.0], "peer": [6.0, 6.0, 6.0]}
    answers = {"ours": None, "peer": None}
    monkeypatch.setattr(measure, "interleaved", lambda *_: (seconds, answers))
    method = methods.load(experiment, "pgd", (4, 9), CPU)
    batch = bench.batch(experiment, CPU, (4, 9), 10)
    peer = measure.Rival("another", lambda _: None, images=3)
    entry = measure.measure(method, batch, {"peer": peer}, Rounds())
    assert entry["seconds_per_image"] == 2 and entry["repeats"] == 3
    expected = {"name": "another", "images": 3, "seconds_per_image": 2.0, "ratio": 1.0}
    assert entry["peer"] == expected


def test_order_turns_round_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) or name for name in ("a", "b")}
    seconds, answers = measure.interleaved(runs, Rounds(3), CPU)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(order) == "baabbaabbaab" and answers == {"a": "a", "b": "b"}


def test_no_round_begins_after_the_time_is_over() -> None:
    calls: list[str] = []
    seconds, _ = measure.interleaved({"a": lambda: calls.append("a")}, Rounds(5, 3, 0.0), CPU)
    assert calls == ["a"] and len(seconds["a"]) == 1
