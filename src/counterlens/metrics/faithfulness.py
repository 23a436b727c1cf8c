"""Faithfulness of a path: does the classifier say what each step intends? (Mirror-CFE, Table 4)"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn import functional

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, NotAvailable


class Options(MetricOptions):
    """Intended against actual features and confidences, mean over steps and kept paths."""

    paired: ClassVar[bool] = True

    def columns(self) -> tuple[Column, ...]:
        """`feature_error`, `confidence_error` and `confidence_divergence`, one value per set."""
        named = (
            ("feature_error", "L_fea"),
            ("confidence_error", "L_conf (L1)"),
            ("confidence_divergence", "L_conf (KLD)"),
        )
        return tuple(
            Column(name=name, label=label, direction="down", per="set") for name, label in named
        )


class Faithfulness(Metric):
    """L_fea = mean |z_k - F(x_k)|; L_conf = mean |p_k - f(x_k)| of the target class, and KL."""

    def per_set(self, cf: CounterfactualSet) -> dict[str, float]:
        """The three columns.

        Raises:
            NotAvailable: the method intends nothing along its path, or has no path.
        """
        if not {"path", "path_intended", "path_features"} <= {*cf.extras}:
            raise NotAvailable("the method intends no confidences along a path")
        path, wanted = cf.extras["path"], cf.extras["path_intended"].double()
        if not len(path):
            raise NotAvailable("no path of a correctly predicted query is kept")
        classifier, device = self.context.classifier, self.context.device
        features, logits = [], []
        with torch.inference_mode():
            for part in path.flatten(0, 1).split(self.context.batch_size):
                images = part.to(device, memory_format=torch.channels_last)
                last_map = classifier.features(images)  # type: ignore[operator]
                features.append(classifier.embed(last_map).cpu())  # type: ignore[operator]
                logits.append(classifier.classify(last_map).cpu())  # type: ignore[operator]
        actual = torch.cat(features).unflatten(0, path.shape[:2])
        said = torch.cat(logits).double().log_softmax(dim=1).unflatten(0, path.shape[:2])
        difference = (said.exp() - wanted)[..., cf.target].abs().mean()
        divergence = functional.kl_div(said, wanted, reduction="none").sum(dim=-1).mean()
        return {
            "feature_error": float((actual - cf.extras["path_features"]).abs().double().mean()),
            "confidence_error": float(difference),
            "confidence_divergence": float(divergence),
        }
