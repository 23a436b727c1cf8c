"""The maps and every loss of C3LT written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from counterlens.methods.c3lt import C3LT, LatentMap

Array = np.ndarray


def walk(module: LatentMap, z: Array, residual: bool = True, preserve_norm: bool = True) -> Array:
    """One code at a time: u = z + W2 relu(W1 z + b1) + b2, rescaled to the first length."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in module.layers.parameters())
    found = []
    for code in z.astype(np.float64):
        length = math.sqrt((code**2).sum())
        steps = [code]
        for _ in range(module.steps):
            moved = w2 @ np.maximum(w1 @ steps[-1] + b1, 0) + b2
            moved = steps[-1] + moved if residual else moved
            steps.append(moved * length / math.sqrt((moved**2).sum()) if preserve_norm else moved)
        found.append(steps)
    return np.array(found)


def moved_far(method: C3LT) -> C3LT:
    """With maps far from the identity, and far from each other."""
    with torch.no_grad():
        for name, scale in (("g", 3.0), ("h", 4.0)):
            for parameter in method.maps[name].parameters():
                parameter.mul_(scale)
    return method


class ByHand:
    """Every image, code and feature that the formulas speak of, as arrays in [-1, 1]."""

    def __init__(self, method: C3LT, x: Tensor, z: Tensor) -> None:
        self.method = method
        half = len(x) // 2
        g, h = (method.maps[name] for name in ("g", "h"))
        z_x, z_y = z.numpy()[:half], z.numpy()[half:]
        self.x, self.y = (2 * part.numpy().astype(np.float64) - 1 for part in x.split(half))
        self.z_x, self.z_y = z_x, z_y
        to_y, to_x = walk(g, z_x)[:, -1], walk(h, z_y)[:, -1]
        self.z_x_cyc, self.z_y_cyc = walk(h, to_y)[:, -1], walk(g, to_x)[:, -1]
        self.x_cf, self.y_cf = self.generate(to_y), self.generate(to_x)
        self.x_cyc, self.y_cyc = self.generate(self.z_x_cyc), self.generate(self.z_y_cyc)
        self.x_rec, self.y_rec = self.generate(z_x), self.generate(z_y)

    def generate(self, z: Array) -> Array:
        decoder = self.method.generator.decoder
        with torch.no_grad():
            return decoder(torch.tensor(z, dtype=torch.float32)[:, :, None, None]).double().numpy()

    def discriminate(self, x: Array) -> Array:
        """Probabilities that images are real."""
        network = self.method.generator.discriminator
        with torch.no_grad():
            logits = network(torch.tensor(x, dtype=torch.float32)).double().numpy().ravel()
        return 1 / (1 + np.exp(-logits))

    def log_probabilities(self, x: Array) -> Array:
        with torch.no_grad():
            images = torch.tensor((x + 1) / 2, dtype=torch.float32)
            logits = self.method.task.classifier(images).double().numpy()
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def features(self, x: Array) -> list[Array]:
        """Both convolutions of LeNet after ReLU and before pooling."""
        net = self.method.task.classifier
        with torch.no_grad():
            first = net.conv1(torch.tensor(x, dtype=torch.float32)).clamp(min=0)
            n, c, height, width = first.shape
            pooled = first.reshape(n, c, height // 2, 2, width // 2, 2).amax((3, 5))
            return [first.double().numpy(), net.conv2(pooled).clamp(min=0).double().numpy()]

    def classification(self) -> float:
        to_y = self.log_probabilities(self.x_cf)[:, 9]
        to_x = self.log_probabilities(self.y_cf)[:, 4]
        return 0.5 * (-to_y.mean() - to_x.mean())

    def hinge(self, margin: float) -> float:
        total = 0.0
        for images, target in ((self.x_cf, 9), (self.y_cf, 4)):
            for row in np.exp(self.log_probabilities(images)):
                best = max(p for label, p in enumerate(row) if label != target)
                total += max(0.0, best - row[target] + margin)
        return total / (len(self.x) + len(self.y))

    def proximity(self, x: Array, x_cf: Array, p1: float = 10, p2: float = 1) -> float:
        l1 = np.abs(x - x_cf).mean()
        smoothness, entropy = [], []
        for image, other in zip(x, x_cf, strict=True):
            q = ((other - image) ** 2)[0]
            m = (q - q.min()) / (q.max() - q.min())
            vertical = np.mean([(a - b) ** 2 for a, b in zip(m[1:], m[:-1], strict=True)])
            across = np.mean([(a - b) ** 2 for a, b in zip(m.T[1:], m.T[:-1], strict=True)])
            smoothness.append(vertical + across)
            entropy.append(np.minimum(m, 1 - m).mean())
        total = l1 + p1 * 0.5 * np.mean(smoothness) + p2 * np.mean(entropy)
        return total / (1 + p1 + p2)

    def paper_proximity(self, x: Array, x_cf: Array) -> float:
        """Eq. 5 as it stands, each image summed: L1, total variation and norm of min(m, 1 - m)."""
        totals = []
        for image, other in zip(x, x_cf, strict=True):
            m = np.abs(other - image)[0]
            variation = np.abs(np.diff(m, axis=0)).sum() + np.abs(np.diff(m, axis=1)).sum()
            entropy = math.sqrt((np.minimum(m, np.maximum(1 - m, 0)) ** 2).sum())
            totals.append(m.sum() + variation + entropy)
        return float(np.mean(totals))

    def perceptual(self, x: Array, x_cyc: Array) -> float:
        first, second = (
            np.abs(a - b).mean()
            for a, b in zip(self.features(x), self.features(x_cyc), strict=True)
        )
        return (first + second + np.abs(x - x_cyc).mean()) / 3

    def cycle(self) -> float:
        return 0.25 * (
            self.perceptual(self.x, self.x_cyc)
            + self.perceptual(self.y, self.y_cyc)
            + np.abs(self.z_x - self.z_x_cyc).mean()
            + np.abs(self.z_y - self.z_y_cyc).mean()
        )

    def paper_cycle(self) -> float:
        """Eq. 6 as it stands: sums over layers, pixels and latents, mean over the images."""
        totals = []
        for x, x_cyc, z, z_cyc in (
            (self.x, self.x_cyc, self.z_x, self.z_x_cyc),
            (self.y, self.y_cyc, self.z_y, self.z_y_cyc),
        ):
            parts = [*zip(self.features(x), self.features(x_cyc), strict=True)]
            parts += [(x, x_cyc), (z, z_cyc)]
            totals.append(sum(np.abs(a - b).sum() for a, b in parts) / len(x))
        return float(np.mean(totals))

    def adversarial(self, saturating: bool = False) -> float:
        terms = []
        for images in (self.x_cf, self.y_cf, self.x_cyc, self.y_cyc):
            real = self.discriminate(images)
            terms.append(np.log(1 - real).mean() if saturating else -np.log(real).mean())
        return sum(terms) / (2 if saturating else 4)
