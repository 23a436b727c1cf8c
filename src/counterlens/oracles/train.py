"""Stage `oracle`: train one oracle and write its files."""

from __future__ import annotations

import torch

from counterlens import layout
from counterlens.config import Models
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.oracles.base import TrainedOracle, create
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.training import Checkpoint, write_trained

__all__ = ["run"]


def run(models: Models, name: str, device: torch.device) -> None:
    """Train the oracle `name` and write model, card and training curve.

    Raises:
        UserError: the oracle is a named weight.
    """
    oracle = create(models, name)
    if not isinstance(oracle, TrainedOracle):
        raise UserError(
            f"oracle {name}: kind '{oracle.options.kind}' is a pretrained network, there is "
            "nothing to train"
        )
    sources = [layout.prepared(models.dataset.name, split) for split in ("train", "test")]
    checkpoint = Checkpoint(models.settings("oracles", name), sources)
    attribute = models.attribute_index(oracle.options.classifier)
    train_set, test_set = (load_split(source, attribute=attribute) for source in sources)
    seed = derive_seed(models.seed, "oracles", name)
    fitted = oracle.fit(train_set, test_set, seed, device, checkpoint)
    about = {**models.about(oracle.options), **fitted.card}
    write_trained(layout.oracle(models.name, name), fitted.module, fitted.history, about)
    checkpoint.remove()
