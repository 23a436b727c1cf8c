"""Training and evaluation of a classifier: the explained one, or an oracle's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from counterlens import layout
from counterlens.classifiers import base
from counterlens.classifiers.base import Classifier
from counterlens.config import ClassifierOptions, Models
from counterlens.data.base import ImageSet, load_split
from counterlens.runtime import device as devices
from counterlens.runtime import files
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import (
    Checkpoint,
    History,
    Losses,
    batches,
    step_decay,
    train,
    write_trained,
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
    answers = model.probabilities(data.images).numpy()
    table = pd.DataFrame(answers, columns=pd.Index([f"p{k}" for k in range(answers.shape[1])]))
    table.insert(0, "predicted", answers.argmax(axis=1))
    table.insert(0, "label", data.labels.numpy())
    table.insert(0, "image", data.index.numpy())
    return table


@torch.inference_mode()
def embeddings(model: Classifier, data: ImageSet, device: torch.device) -> np.ndarray:
    """Penultimate features float32 (N, d) of every image."""
    features = [
        model.embedding(part.to(device, memory_format=torch.channels_last)).cpu()
        for part in data.images.split(1024)
    ]
    return torch.cat(features).numpy()


def run(models: Models, name: str, device: torch.device) -> None:
    """Stage `classifier`: train one classifier and write its five files."""
    dataset = models.dataset.name
    sources = [layout.prepared(dataset, split) for split in ("train", "test")]
    seed = derive_seed(models.seed, "classifiers", name)
    torch.manual_seed(seed)
    model = base.create(models, name)
    checkpoint = Checkpoint(models.settings("classifiers", name), sources)
    attribute = models.attribute_index(name)
    data = load_split(sources[0], shown(models, name), attribute)
    history = fit(model, data, models.classifiers[name], seed, device, checkpoint)
    write(models, name, model, history, load_split(sources[1], attribute=attribute), device)
    checkpoint.remove()


def write(
    models: Models,
    name: str,
    model: Classifier,
    history: History,
    test_set: ImageSet,
    device: torch.device,
    about: Mapping[str, object] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """The five files of a classifier, trained here or not: its answers to all test images too.

    Args:
        about: what the card says besides.
        metadata: of the model file.
    """
    answers = predictions(model, test_set)
    folder = layout.classifier(models.name, name)
    files.save_tensors(
        folder / "embeddings.safetensors",
        {"features": embeddings(model, test_set, device), "labels": test_set.labels.numpy()},
    )
    files.write_parquet(folder / "predictions.parquet", answers)
    card = {
        **models.about(models.classifiers[name]),
        **accuracy(answers, models.class_names(name)),
        **(about or {}),
    }
    write_trained(folder, model, history, card, metadata=metadata)


def shown(models: Models, name: str) -> list[int] | None:
    """The classes whose training images a classifier is shown; None: all of them."""
    left_out = models.classifiers[name].left_out
    if not left_out:
        return None
    return [k for k in range(len(models.class_names(name))) if k not in left_out]


def accuracy(answers: pd.DataFrame, classes: Sequence[str]) -> dict[str, object]:
    """How many test images are answered correctly, in all and of each class."""
    labels = answers["label"].to_numpy()
    correct = labels == answers["predicted"].to_numpy()
    return {
        "test_images": len(answers),
        "test_accuracy": float(np.mean(correct)),
        "test_accuracy_per_class": {
            name: float(np.mean(correct[labels == label]))
            for label, name in enumerate(classes)
            if (labels == label).any()
        },
    }
