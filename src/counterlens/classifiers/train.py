"""Training and evaluation of a classifier: the explained one, or an oracle's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from counterlens import __version__, layout
from counterlens.classifiers import base
from counterlens.classifiers.base import Classifier
from counterlens.config import ClassifierOptions, Experiment
from counterlens.data.base import ImageSet, load_split
from counterlens.runtime import device as devices
from counterlens.runtime import files
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import (
    Checkpoint,
    History,
    Losses,
    batches,
    save_model,
    step_decay,
    train,
)


def fit(
    model: Classifier,
    data: ImageSet,
    options: ClassifierOptions,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None,
    name: str = "classifier",
) -> History:
    """Train with cross-entropy, on shifted and mirrored images if asked for.

    Where the attributes have a weight, a linear layer that is dropped afterwards reads them off
    the embedding.
    """
    devices.place(model, device).train()
    images = data.images.to(device)
    labels = data.labels.to(device)
    reader = None
    if options.attribute_weight and data.attributes is not None:
        reader = nn.LazyLinear(data.attributes.shape[1]).to(device)
        with torch.no_grad():
            reader(model.eval().embedding(images[:2]))  # gives it its size
        model.train()
    attributes = None if data.attributes is None else data.attributes.to(device)
    trained = nn.ModuleList([model] if reader is None else [model, reader])
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
    )
    scheduler = step_decay(optimizer, options.decay_every)

    def epoch_losses(epoch: int) -> Iterator[Losses]:
        epoch_seed = derive_seed(seed, "epoch", epoch)
        torch.manual_seed(epoch_seed)
        shifts = generator(derive_seed(epoch_seed, "shift"))
        for index in batches(len(labels), options.batch_size, epoch_seed):
            chosen = index.to(device)
            x, y = images[chosen], labels[chosen]
            if options.max_shift:
                x = shift(x, options.max_shift, shifts)
            if options.flip:
                mirrored = torch.rand(len(x), generator=shifts).to(device) < 0.5
                x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
            with devices.autocast(device, options.precision):
                last_map = model.features(x.contiguous(memory_format=torch.channels_last))
                logits = model.classify(last_map)
            loss = functional.cross_entropy(logits.float(), y)
            if reader is not None and attributes is not None:
                with devices.autocast(device, options.precision):
                    read = reader(model.embed(last_map))
                wrong = functional.binary_cross_entropy_with_logits(
                    read.float(), attributes[chosen]
                )
                loss = loss + options.attribute_weight * wrong
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            accuracy = (logits.detach().argmax(dim=1) == y).float().mean()
            yield {"loss": loss.detach(), "accuracy": accuracy}

    parts = {"model": trained, "optimizer": optimizer, "scheduler": scheduler}
    history = train(name, options.epochs, epoch_losses, parts, checkpoint, [scheduler])
    model.eval()
    return history


def shift(x: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Move each image by up to `most` pixels both ways, filling with its border value."""
    padded = functional.pad(x, (most,) * 4, mode="replicate")
    height, width = x.shape[2:]
    offsets = torch.randint(0, 2 * most + 1, (len(x), 2), generator=random).to(x.device)
    rows = (offsets[:, :1] + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (offsets[:, 1:] + torch.arange(width, device=x.device))[:, None, None, :]
    images = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[images, channels, rows, columns]


def predictions(model: Classifier, data: ImageSet) -> pd.DataFrame:
    """One row per image: image, label, predicted and the probability of every class."""
    found = model.probabilities(data.images).numpy()
    table = pd.DataFrame(found, columns=pd.Index([f"p{k}" for k in range(found.shape[1])]))
    table.insert(0, "predicted", found.argmax(axis=1))
    table.insert(0, "label", data.labels.numpy())
    table.insert(0, "image", data.index.numpy())
    return table


@torch.inference_mode()
def embeddings(model: Classifier, data: ImageSet, device: torch.device) -> np.ndarray:
    """Penultimate features float32 (N, d) of every image."""
    found = [
        model.embedding(part.to(device, memory_format=torch.channels_last)).cpu()
        for part in data.images.split(1024)
    ]
    return torch.cat(found).numpy()


def run(experiment: Experiment, device: torch.device) -> None:
    """Stage `classifier`: train the explained classifier and write its five files."""
    dataset = experiment.dataset.name
    sources = [layout.prepared(dataset, split) for split in ("train", "test")]
    settings = experiment.settings("classifier")
    seed = derive_seed(experiment.seed, experiment.name, "classifier")
    torch.manual_seed(seed)
    model = base.create(experiment)
    checkpoint = Checkpoint(settings, sources)
    data = load_split(sources[0], shown(experiment))
    history = fit(model, data, experiment.classifier, seed, device, checkpoint)
    test_set = load_split(sources[1])
    table = predictions(model, test_set)

    folder = layout.classifier(experiment.name)
    files.save_tensors(
        folder / "embeddings.safetensors",
        {"features": embeddings(model, test_set, device), "labels": test_set.labels.numpy()},
    )
    files.write_csv(folder / "training.csv", pd.DataFrame(history))
    files.write_parquet(folder / "predictions.parquet", table)
    files.write_json(folder / "card.json", card(experiment, model, history, table))
    save_model(folder / "model.safetensors", model)
    checkpoint.remove()


def shown(experiment: Experiment) -> list[int] | None:
    """The classes whose training images the classifier is shown; None: all of them."""
    left_out = experiment.classifier.left_out
    if not left_out:
        return None
    return [k for k in range(len(experiment.dataset.classes)) if k not in left_out]


def card(
    experiment: Experiment, model: Classifier, history: History, table: pd.DataFrame
) -> dict[str, object]:
    """What a reader wants to know of a trained classifier."""
    labels = table["label"].to_numpy()
    correct = labels == table["predicted"].to_numpy()
    return {
        "kind": experiment.classifier.kind,
        "dataset": experiment.dataset.name,
        "options": experiment.classifier.model_dump(mode="json"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": experiment.seed,
        "scale": experiment.scale,
        "epochs": len(history),
        "training": history[-1],
        "test_images": len(table),
        "test_accuracy": float(np.mean(correct)),
        "test_accuracy_per_class": {
            name: float(np.mean(correct[labels == label]))
            for label, name in enumerate(experiment.dataset.classes)
            if (labels == label).any()
        },
        "version": __version__,
    }
