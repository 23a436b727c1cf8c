"""What a user brings: a folder of pictures and a trained network, here made from the digits.

    python examples/bring_your_own/make.py FOLDER

writes FOLDER/pictures/{three,eight,nine}/*.png, of several sizes, and the network of `net.py` in
three formats: net.safetensors, net.onnx and net.pt. docs/bring-your-own.md explains them all.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from net import build
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

CLASSES = {3: "three", 8: "eight", 9: "nine"}


def pictures(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the pictures; returns them as the network sees them, (N, 1, 28, 28) in [-1, 1]."""
    data = load_digits()
    images, labels = [], []
    for number, (pixels, digit) in enumerate(zip(data.images, data.target, strict=True)):
        if digit in CLASSES:
            side = 28 + 4 * (number % 3)
            grey = Image.fromarray(np.rint(pixels / 16 * 255).astype(np.uint8))
            path = folder / CLASSES[digit] / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey.resize((side, side), Image.Resampling.BICUBIC).save(path)
            images.append(np.asarray(grey.resize((28, 28), Image.Resampling.BICUBIC)) / 255)
            labels.append(list(CLASSES).index(digit))
    x = torch.tensor(np.stack(images), dtype=torch.float32)[:, None]
    return 2 * x - 1, torch.tensor(labels)


def train(x: torch.Tensor, y: torch.Tensor, epochs: int = 15) -> torch.nn.Module:
    """Any training will do, here with a learning rate that falls to zero."""
    torch.manual_seed(0)
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(32):
            loss = torch.nn.functional.cross_entropy(network(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return network.eval()


def export(network: torch.nn.Module, x: torch.Tensor, folder: Path) -> None:
    """The three formats that a user may have."""
    save_file(network.state_dict(), folder / "net.safetensors")
    torch.onnx.export(
        network,
        (x[:2],),
        str(folder / "net.onnx"),
        input_names=["images"],
        dynamic_axes={"images": {0: "batch"}},
        dynamo=False,
    )
    torch.jit.trace(network, x[:2]).save(str(folder / "net.pt"))


def main(folder: Path) -> None:
    """Make everything in a folder."""
    x, y = pictures(folder / "pictures")
    export(train(x, y), x, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
