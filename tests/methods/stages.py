"""For the tests of the stages on a tiny project: a user's own method, and what was written."""

from __future__ import annotations

import torch

from counterlens import layout
from counterlens.config import Evaluation, Experiment
from counterlens.metrics.base import CounterfactualSet

CPU = torch.device("cpu")
QUERIES = {4: 30, 9: 20}


MEAN_IMAGE = '''
from pydantic import Field

import torch
from counterlens.config import MethodOptions
from counterlens.methods.base import Explanation, Method


class Options(MethodOptions):
    level: float = Field(default=1.0, ge=0, le=1)


class MeanImage(Method):
    """Every pixel becomes its image's mean; found where the first pixel is not dark."""

    def explain(self, x, source, target, randomness):
        mean = x.mean((1, 2, 3), keepdim=True)
        found = x[:, 0, 0, 0] > 0.1
        return Explanation(torch.lerp(x, mean.expand_as(x), self.options.level), found)
'''


def evaluated(e: Experiment, **changes: int | str) -> Experiment:
    evaluation = Evaluation.model_validate({**e.evaluation.model_dump(), **changes})
    return e.model_copy(update={"evaluation": evaluation})


def whole_set(method: str, source: int, target: int) -> CounterfactualSet:
    """What the metrics read."""
    return CounterfactualSet.load(layout.counterfactuals("tiny", method, source, target))
