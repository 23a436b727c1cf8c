"""Stage `fit` on a tiny project of its own."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from counterlens import layout
from counterlens.config import Experiment
from counterlens.errors import UserError
from counterlens.methods import base, c3lt, explain, fit
from counterlens.runtime import files
from counterlens.runtime.training import Checkpoint

from .stages import CPU


def test_fit_writes_the_model_and_its_losses(experiment: Experiment, digests) -> None:
    folder = layout.method("tiny", "c3lt", "4-9")
    names = {"model.safetensors", "card.json", "training.csv"}
    assert {path.name for path in folder.iterdir()} == names
    card = files.read_json(folder / "card.json")
    assert card["kind"] == "c3lt" and card["epochs"] == 3 and card["gates"] == {}
    history = pd.read_csv(folder / "training.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert {"classification", "proximity", "cycle", "adversarial"} <= set(history.columns)
    # the same method without its file has other parameters
    fresh = base.create(experiment, "c3lt", "4-9", CPU).trained().state_dict()
    loaded = base.load(experiment, "c3lt", (4, 9), CPU).trained()
    assert not any(torch.equal(fresh[k], v) for k, v in loaded.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters())
    before = digests()
    fit.run(experiment, "c3lt", "4-9", CPU)
    assert digests() == before


def test_a_killed_fit_ends_with_the_same_bytes(
    experiment: Experiment, digests, kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests()
    for path in layout.method("tiny", "c3lt", "4-9").iterdir():
        path.unlink()
    monkeypatch.setattr(fit, "Checkpoint", lambda *a: Checkpoint(*a, seconds=0))
    # each epoch draws one order per class
    with pytest.raises(kill(c3lt, 5)):
        fit.run(experiment, "c3lt", "4-9", CPU)
    assert not list(layout.method("tiny", "c3lt", "4-9").iterdir())
    assert len(list(layout.CHECKPOINTS.iterdir())) == 1
    fit.run(experiment, "c3lt", "4-9", CPU)
    assert digests() == before


def test_a_method_that_is_not_trained(experiment: Experiment) -> None:
    (layout.method("tiny", "c3lt", "4-9") / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"methods/c3lt/4-9/model\.safetensors: no such file"):
        explain.run(experiment, "c3lt", 4, 9, CPU)
    for method, scope, known in (
        ("pgd", "4-9", "none"),
        ("c3lt", "3-8", "4-9"),
        ("c3lt", "all-pairs", "4-9"),
    ):
        with pytest.raises(UserError, match=f"not trained on '{scope}'; known: {known}$"):
            fit.run(experiment, method, scope, CPU)
