"""The training loop: resumed like uninterrupted, stopped on NaN, checkpointed by content."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from counterlens import layout
from counterlens.errors import UserError
from counterlens.runtime import training
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.training import Checkpoint, batches, cosine_decay, step_decay, train


class Killed(BaseException):
    """Stands for a signal."""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Toy:
    """A small regression with batch normalisation, dropout and momentum: much state to lose."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 1)
        )
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        self.scheduler = step_decay(self.optimizer, 2)
        self.x = torch.randn(10, 2, 4, 4)
        self.rates: list[float] = []
        self.before_step: Callable[[int, int], None] = lambda epoch, step: None

    def epoch_losses(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        torch.manual_seed(derive_seed(1, epoch))
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        for step, index in enumerate(batches(10, 4, derive_seed(2, epoch))):
            self.before_step(epoch, step)
            loss = (self.model(self.x[index]) - 1).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield {"loss": loss.detach(), "half": loss.detach() / 2}

    def train(self, epochs: int = 6, checkpoint: Checkpoint | None = None) -> training.History:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return train("toy", epochs, self.epoch_losses, parts, checkpoint, [self.scheduler])

    def state(self) -> dict[str, bytes]:
        """Parameters, buffers and the optimiser's moments, as bytes."""
        tensors = dict(self.model.state_dict())
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{name}": value for name, value in moments.items()}
        return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}


@pytest.fixture
def checkpoint() -> Callable[..., Checkpoint]:
    return lambda *settings: Checkpoint(list(settings), [], seconds=0)


def test_history_holds_the_means_of_each_epoch() -> None:
    values = [[1.0, 2.0, 6.0], [5.0]]

    def epoch_losses(epoch: int) -> Iterator[dict[str, Tensor]]:
        for value in values[epoch]:
            yield {"a": torch.tensor(value), "b": torch.tensor(-value, dtype=torch.bfloat16)}

    assert train("toy", 2, epoch_losses, {}) == [
        {"epoch": 1, "a": 3.0, "b": -3.0},
        {"epoch": 2, "a": 5.0, "b": -5.0},
    ]


@pytest.mark.parametrize(("epoch", "step"), [(1, 0), (3, 1), (5, 2)])
def test_a_resumed_training_ends_with_the_same_bytes(epoch: int, step: int, checkpoint) -> None:
    whole = Toy()
    history = whole.train()
    assert history[-1]["loss"] < history[0]["loss"]
    assert whole.rates == [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025]  # stepped once per epoch

    def die(*now: int) -> None:
        if now == (epoch, step):
            raise Killed

    killed = Toy()
    killed.before_step = die
    with pytest.raises(Killed):
        killed.train(checkpoint=checkpoint("toy"))
    resumed = Toy()
    kept = checkpoint("toy")
    assert resumed.train(checkpoint=kept) == history
    assert resumed.state() == whole.state()
    assert resumed.rates == whole.rates[epoch:]  # it did continue
    kept.remove()
    assert not kept.folder.exists() and kept.load() is None


def test_a_training_resumed_after_its_last_epoch_has_nothing_left_but_it(checkpoint) -> None:
    """The last epoch is not kept: its result is the output."""
    kept = checkpoint("toy")
    first = Toy()
    first.train(checkpoint=kept)
    state = kept.load()
    assert state is not None and len(state["history"]) == 5
    second = Toy()
    second.train(checkpoint=kept)
    assert second.rates == first.rates[5:] and second.state() == first.state()


def test_a_checkpoint_is_kept_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    kept = Checkpoint("toy", [], seconds=30)
    assert not kept.due()
    Toy().train(checkpoint=kept)
    assert kept.load() is None
    now = 129.9
    assert not kept.due()
    now = 130.0
    assert kept.due()
    kept.save({"parts": {}, "history": []})
    assert not kept.due() and kept.load() == {"parts": {}, "history": []}
    now = 160.0
    assert kept.due()


def test_a_loss_that_is_not_finite_stops_the_training(checkpoint) -> None:
    def break_down(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 1):
            with torch.no_grad():
                toy.model[4].weight.fill_(math.nan)  # type: ignore[union-attr]

    kept = checkpoint("toy")
    toy = Toy()
    toy.before_step = break_down
    with pytest.raises(UserError) as caught:
        toy.train(checkpoint=kept)
    message = str(caught.value)
    assert message.startswith("toy: loss is not finite at epoch 4, step 2; ")
    assert f"last good checkpoint: {kept.path}" in message and "\n" not in message
    assert "lower the learning rate" in message
    state = kept.load()
    assert state is not None and len(state["history"]) == 3
    assert all(value.isfinite().all() for value in state["parts"]["model"].values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_it_stops_without_a_checkpoint_too(value: float) -> None:
    losses = {"good": torch.tensor(1.0), "bad": torch.tensor(value)}
    with pytest.raises(UserError, match=r"epoch 1, step 1; last good checkpoint: none"):
        train("toy", 2, lambda epoch: [losses], {})


# The checkpoint's folder


def test_the_folder_is_named_by_settings_inputs_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, code = tmp_path / "data", tmp_path / "method.py"
    data.write_text("1")
    code.write_text("x = 1")
    plugin = ModuleType("counterlens_plugin_methods_method")
    plugin.__file__ = str(code)
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    assert {code, Path(training.__file__)} <= {*training.loaded_code()}
    assert Path(torch.__file__) not in training.loaded_code()

    def folder(settings: object, *inputs: Path) -> Path:
        return Checkpoint(settings, inputs).folder

    first = folder({"a": 1, "b": 2}, data)
    assert first.parent == layout.CHECKPOINTS and first == folder({"b": 2, "a": 1}, data)
    folders = {first, folder({"a": 1, "b": 3}, data), folder({"a": 1, "b": 2})}
    data.write_text("2")
    folders.add(folder({"a": 1, "b": 2}, data))
    data.write_text("1")
    assert folder({"a": 1, "b": 2}, data) == first  # content decides, not time
    code.write_text("x = 2")
    folders.add(folder({"a": 1, "b": 2}, data))
    assert len(folders) == 5


def test_another_training_does_not_continue_from_it(checkpoint) -> None:
    checkpoint("a").save({"parts": {}, "history": [1]})
    assert checkpoint("b").load() is None
    assert checkpoint("a").load() == {"parts": {}, "history": [1]}
    checkpoint("b").remove()  # what is not there is removed silently
    assert checkpoint("a").load() is not None


# Batches and schedules


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 8, [3]), (1, 1, [1])],
)
def test_batches_are_a_permutation(count: int, size: int, lengths: list[int]) -> None:
    found = list(batches(count, size, 3))
    assert [len(part) for part in found] == lengths
    order = torch.cat(found).tolist()
    assert sorted(order) == list(range(count))
    assert torch.cat(list(batches(count, size, 3))).tolist() == order
    if count > 3:
        assert torch.cat(list(batches(count, size, 4))).tolist() != order
        assert order != sorted(order)


def test_batches_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(batches(10, 3, 1))
    assert torch.equal(torch.rand(1), expected)


def rates(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]) -> list:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(6):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_decay() -> None:
    assert rates(lambda o: step_decay(o, 2)) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates(lambda o: step_decay(o, 0, 0.1)) == pytest.approx([10.0**-k for k in range(6)])


def test_cosine_decay() -> None:
    expected = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert rates(lambda o: cosine_decay(o, 4)) == pytest.approx([*expected, 0.0])


# Models


def test_a_model_comes_back(tmp_path: Path) -> None:
    toy, path = Toy(), tmp_path / "model.safetensors"
    toy.train(1)
    training.save_model(path, toy.model, {"kind": "toy"})
    other = Toy()
    assert other.state() != toy.state()
    training.load_model(path, other.model)
    for key, value in toy.model.state_dict().items():
        found = other.model.state_dict()[key]
        assert found.dtype == value.dtype and torch.equal(found, value)
    assert int(other.model.state_dict()["1.num_batches_tracked"]) == 3


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    training.save_model(path, nn.Linear(2, 3))
    with pytest.raises(UserError, match=r"model\.safetensors: does not fit Linear: ") as caught:
        training.load_model(path, nn.Linear(2, 4))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"does not fit Sequential"):
        training.load_model(path, nn.Sequential(nn.Linear(2, 3)))
