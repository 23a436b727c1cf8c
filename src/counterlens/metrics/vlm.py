"""Scores of a vision-language model, asked like a human judge (CECAS, section 5.4, Appendix C).

Off unless an experiment lists the metric and the environment names an endpoint (`vlm_client`).
Images are sent to that endpoint.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from pydantic import Field

from counterlens.config import Column, MetricOptions
from counterlens.errors import UserError
from counterlens.metrics.base import (
    CounterfactualSet,
    Metric,
    MetricContext,
    NotAvailable,
    quantise,
    require_query,
)
from counterlens.metrics.parts.vlm_client import (
    CRITERIA,
    MODEL,
    URL,
    Client,
    Endpoint,
    Limits,
    OutOfBudget,
    Question,
    Scores,
)
from counterlens.runtime.seeding import derive_seed

PROMPTS = Path(__file__).with_name("vlm_prompts.yaml")
CACHE = Path(".cache/vlm")


class Options(MetricOptions):
    """What is asked of how many pairs, and what it may cost.

    Attributes:
        task: a task of `vlm_prompts.yaml`, e.g. `smile`; `classes` names the two classes.
        images: pairs per direction, the same for all methods.
        verbatim: the published wording where it names the wrong thing.
        least_side: smaller images are enlarged to at least that many pixels, each pixel repeated.
        budget: requests per direction, further tries included.
        request: what is sent along with each question; servers differ in what they take.
        timeout, retries, pause, concurrency: seconds per request, further tries of one pair,
            seconds before the first of them (then doubled), requests at the same time.
    """

    paired: ClassVar[bool] = True

    task: str = "classes"
    images: int = Field(default=50, gt=0)
    verbatim: bool = False
    least_side: int = Field(default=256, gt=0)
    request: dict[str, int | float | str | bool] = Field(
        default={"temperature": 0, "seed": 0, "max_tokens": 100}
    )
    budget: int = Field(default=200, gt=0)
    timeout: float = Field(default=60.0, gt=0)
    retries: int = Field(default=2, ge=0)
    pause: float = Field(default=1.0, ge=0)
    concurrency: int = Field(default=4, gt=0)

    def columns(self) -> tuple[Column, ...]:
        """The four criteria and their mean, 1 to 10, one value per direction."""
        names = ("validity", "sparsity", "proximity", "realism")
        return (
            Column(name="vlm", label="VLM", direction="up", per="set", decimals=2),
            *(
                Column(
                    name=f"vlm_{name}",
                    label=f"VLM {name}",
                    direction="up",
                    per="set",
                    decimals=2,
                )
                for name in names
            ),
        )


class Vlm(Metric):
    """Mean scores of the pairs that were answered; one pair per request, methods not named."""

    def __init__(self, options: Any, context: MetricContext) -> None:
        super().__init__(options, context)
        self._notes: dict[str, str] = {}

    def per_set(self, cf: CounterfactualSet) -> dict[str, float]:
        """`vlm` and its four criteria.

        Raises:
            NotAvailable: no endpoint is named, the budget is used up, or nothing well-formed came.
            UserError: the task is unknown, or the endpoint refuses.
        """
        endpoint = Endpoint.from_environment()
        if endpoint is None:
            raise NotAvailable(f"no vision-language model: set {URL} and {MODEL}")
        options = self.options
        limits = Limits(
            options.timeout, options.retries, options.pause, options.concurrency, options.budget
        )
        client = Client(endpoint, limits, options.request, CACHE)
        questions = self.questions(cf)
        try:
            answers = client.scores(questions)
        except OutOfBudget:
            answered = sum(client.remembered(question) is not None for question in questions)
            raise NotAvailable(
                f"the budget of {options.budget} requests is used up with {answered} of "
                f"{len(questions)} pairs answered; make the metrics again to go on"
            ) from None
        scores = [each for each in answers if each is not None]
        if not scores:
            missing = "the endpoint gave no well-formed answer"
            raise NotAvailable(missing if endpoint.url else f"no answer is kept: set {URL}")
        self._notes = self._facts(endpoint.model, scores, len(answers))
        means = {name: float(np.mean([each[name] for each in scores])) for name in CRITERIA}
        return {
            "vlm": float(np.mean(list(means.values()))),
            **{f"vlm_{name}": value for name, value in means.items()},
        }

    def notes(self, cf: CounterfactualSet) -> dict[str, str]:
        """Whom was asked, how often, and what did not come."""
        return self._notes

    def _facts(self, model: str, scores: list[Scores], asked: int) -> dict[str, str]:
        version = prompts()["version"]
        words = "verbatim prompts" if self.options.verbatim else "corrected prompts"
        failed = asked - len(scores)
        text = f"{model}, {words} version {version}, {self.options.images} pairs at most"
        return {"vlm": f"{text}; {failed} without an answer" if failed else text}

    def questions(self, cf: CounterfactualSet) -> list[Question]:
        """The pairs that are judged, in an order that tells nothing.

        Which these are depends on the numbers of the images alone, so that methods share them.
        """
        numbers = cf.table["image"].tolist() if "image" in cf.table else list(range(len(cf)))
        place = (cf.source, cf.target)
        order = sorted(range(len(cf)), key=lambda row: derive_seed(0, "vlm", *place, numbers[row]))
        prompt = self.prompt(cf)
        query, made = quantise(require_query(cf)), quantise(cf.counterfactual)
        return [
            Question(prompt, (self.png(query[row]), self.png(made[row])))
            for row in order[: self.options.images]
        ]

    def prompt(self, cf: CounterfactualSet) -> str:
        """The whole text of a request.

        Raises:
            UserError: there is no such task.
        """
        content = prompts()
        tasks = content["tasks"]
        if self.options.task not in tasks:
            known = ", ".join(tasks)
            raise UserError(f"metric vlm: task '{self.options.task}' is unknown; known: {known}")
        task = dict(tasks[self.options.task])
        published = task.pop("verbatim", {})
        if self.options.verbatim:
            task |= published
        names = self.context.class_names or tuple(map(str, range(1 + max(cf.source, cf.target))))
        classes = {"source": names[cf.source], "target": names[cf.target]}
        task = {key: text.format(**classes) for key, text in task.items()}
        lines = [content["question"].format(**task)]
        lines += [f"- {name.capitalize()}: {content['criteria'][name]}" for name in CRITERIA]
        return "\n".join([*lines, content["answer"]]).replace("{reached}", task["reached"])

    def png(self, image: torch.Tensor) -> bytes:
        """An image (C, H, W) uint8, large enough to be seen, as PNG."""
        from PIL import Image

        factor = -(-self.options.least_side // min(image.shape[1:]))
        shown = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        pixels = shown[0] if len(shown) == 1 else shown.permute(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(buffer, "PNG")
        return buffer.getvalue()


def prompts() -> dict[str, Any]:
    """The content of `vlm_prompts.yaml`."""
    return yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
