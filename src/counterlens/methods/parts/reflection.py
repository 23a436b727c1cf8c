"""Reflection of a classifier's features across its decision boundary (Mirror-CFE, ICCV 2025).

The boundary between two classes of a linear head is a plane in the space of the pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reflect(
    z: Tensor, source: Tensor, target: Tensor, weight: Tensor, bias: Tensor, kind: str
) -> Tensor:
    """The mirror image of each z behind the boundary of its source and target class (Eq. 1).

    Args:
        z: (N, d) pooled features.
        source, target: int64 (N,).
        weight, bias: (classes, d) and (classes,) of the linear head.
        kind: `pairwise`, or `multi-class` and `multi-class-lbfgs` (supplement, section 7).

    Returns:
        (N, d).
    """
    normal = weight[target] - weight[source]
    margin = (normal * z).sum(dim=1) + bias[target] - bias[source]
    mirrored = z - 2 * (margin / normal.square().sum(dim=1))[:, None] * normal
    if kind == "pairwise":
        return mirrored
    logits = z @ weight.T + bias
    exchanged = logits.scatter(1, source[:, None], logits.gather(1, target[:, None]))
    exchanged = exchanged.scatter(1, target[:, None], logits.gather(1, source[:, None]))
    if kind == "multi-class":
        inverse = torch.linalg.pinv(weight.double(), rtol=1e-6)
        return z + ((exchanged - logits).double() @ inverse.T).to(z.dtype)
    return _reflect_lbfgs(mirrored, exchanged, weight, bias)


def _reflect_lbfgs(start: Tensor, wanted: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """argmin |W z + b - wanted|^2 from `start`, with the settings of the released code."""
    wanted, weight, bias = (part.detach().double() for part in (wanted, weight, bias))
    with torch.inference_mode(False), torch.enable_grad():
        z = start.detach().double().clone().requires_grad_(True)
        weight, wanted, bias = weight.clone(), wanted.clone(), bias.clone()
        optimizer = torch.optim.LBFGS([z], lr=0.1)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (z @ weight.T + bias - wanted).square().sum()
            loss.backward()
            return loss

        for _ in range(10):
            optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return z.detach().to(start.dtype)


def lift(last_map: Tensor, end: Tensor, normal: Tensor, offset: Tensor, kind: str) -> Tensor:
    """A feature map whose spatial mean is the reflection (Eq. 16-17).

    Args:
        last_map: (N, d, h, w) of the query.
        end: (N, d), the reflection.
        normal, offset: (N, d) and (N,) of the boundary, for `per-location`.
        kind: `uniform` adds one vector everywhere; `per-location` mirrors every location at the
            boundary and then adds one vector.

    Returns:
        (N, d, h, w).
    """
    if kind == "per-location":
        margin = torch.einsum("nd,ndhw->nhw", normal, last_map) + offset[:, None, None]
        scale = 2 * margin / normal.square().sum(dim=1)[:, None, None]
        last_map = last_map - scale[:, None] * normal[:, :, None, None]
    return last_map + (end - last_map.mean(dim=(2, 3)))[:, :, None, None]


def spatial_prior(
    moved_map: Tensor, evidence: Sequence[Tensor], threshold: Tensor, normalisation: str
) -> Tensor:
    """Where source or target class activate above the threshold (Eq. 13).

    Args:
        moved_map: (N, d, h, w), the feature map at k.
        evidence: rows of the head, (N, d), of the source and of the target class.
        threshold: (N,).
        normalisation: `relu-max` or `min-max`, of each activation map to [0, 1].

    Returns:
        float (N, 1, h, w) of zeros and ones.
    """
    mask = torch.zeros_like(moved_map[:, :1], dtype=torch.bool)
    for row in evidence:
        activation = torch.einsum("nd,ndhw->nhw", row, moved_map)[:, None]
        if normalisation == "relu-max":
            activation = activation.clamp(min=0)
        else:
            activation = activation - activation.amin((2, 3), keepdim=True)
        activation = activation / (activation.amax((2, 3), keepdim=True) + 1e-8)
        mask |= activation > threshold[:, None, None, None]
    return mask.to(moved_map.dtype)
