"""Stage `oracles`: train one oracle and write its files."""

from __future__ import annotations

import pandas as pd
import torch

from counterlens import __version__, layout
from counterlens.config import Experiment
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.oracles.base import TrainedOracle, create
from counterlens.runtime import files
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.training import Checkpoint

__all__ = ["run"]


def run(experiment: Experiment, name: str, device: torch.device) -> None:
    """Train the oracle `name` and write model, card and training curve.

    Raises:
        UserError: the oracle is a named weight.
    """
    oracle = create(experiment, name)
    if not isinstance(oracle, TrainedOracle):
        raise UserError(
            f"oracle {name}: kind '{oracle.options.kind}' is a pretrained network, there is "
            "nothing to train"
        )
    dataset = experiment.dataset.name
    checkpoint = Checkpoint(
        oracle.settings(), [layout.prepared(dataset, split) for split in ("train", "test")]
    )
    seed = derive_seed(experiment.seed, experiment.name, "oracles", name)
    fitted = oracle.fit(
        load_split(layout.prepared(dataset, "train")),
        load_split(layout.prepared(dataset, "test")),
        seed,
        device,
        checkpoint,
    )
    target = layout.oracle(experiment.name, name)
    files.write_csv(target / "training.csv", pd.DataFrame(fitted.history))
    files.write_json(
        target / "card.json",
        {
            "kind": oracle.options.kind,
            "dataset": dataset,
            "options": oracle.options.model_dump(mode="json"),
            "seed": experiment.seed,
            "scale": experiment.scale,
            "epochs": len(fitted.history),
            "version": __version__,
            **fitted.card,
        },
    )
    oracle.save()
    checkpoint.remove()
