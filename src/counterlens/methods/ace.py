"""ACE: adversarial counterfactual explanations (Jeanneret et al., CVPR 2023).

An attack through a diffusion filter gives the pre-explanation; where it changes the query by much,
the diffusion model regenerates it, and the query stays elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from counterlens.methods.base import BarePasses, Explanation, Method, Task
from counterlens.methods.parts.filtered_attack import FilteredAttack, children, edit_mask
from counterlens.methods.parts.filtered_attack_options import FilteredAttackOptions


class Options(FilteredAttackOptions):
    """ACE-l1 by default; ACE-l2 has `l1: 0` and `l2: 0.1`.

    Attributes:
        l2: weight of the Euclidean distance to the query.
        refine: whether the pre-explanation is refined, or is itself the answer.
    """

    label: ClassVar[str] = "ACE"

    l2: float = Field(default=0.0, ge=0)
    refine: bool = True


class ACE(Method):
    """Extras: `pre_explanation` (N, C, H, W), `edit_mask` (N, 1, H, W), `attack_probability`
    (N, iterations)."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.attack = FilteredAttack(options, task)

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        options = self.options
        of_attack, of_refinement = children(randomness, 2)
        attacked = self.attack.run(x, target, of_attack, options.l1, options.l2)
        edit = edit_mask(x, attacked.images, options.threshold, options.dilation)
        counterfactual = attacked.images
        if options.refine:
            counterfactual = self.attack.refine(counterfactual, x, edit, of_refinement)
        with torch.inference_mode():
            answered = self.task.classifier(counterfactual).argmax(dim=1)
        extras = {
            "pre_explanation": attacked.images,
            "edit_mask": edit,
            "attack_probability": attacked.target_probability,
        }
        return Explanation(counterfactual, answered == target, extras)

    def bare(self, x: Tensor, target: Tensor) -> BarePasses:
        """Of one attack and one refinement."""
        return self.attack.bare(x, attacks=1)
