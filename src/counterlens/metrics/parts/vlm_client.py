"""Asks any OpenAI-compatible endpoint for the four scores of a pair of images, once each.

The endpoint is named by the environment: `COUNTERLENS_VLM_URL` (up to and with the `/v1`),
`COUNTERLENS_VLM_MODEL`, and `COUNTERLENS_VLM_KEY` where it wants one. The key goes into a request's
header and nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterlens.errors import UserError
from counterlens.runtime import files
from counterlens.runtime.progress import progress

URL, MODEL, KEY = "COUNTERLENS_VLM_URL", "COUNTERLENS_VLM_MODEL", "COUNTERLENS_VLM_KEY"
CRITERIA = ("validity", "sparsity", "proximity", "realism")
LOWEST, HIGHEST = 1, 10
REFUSED = {401, 403, 404}
RETRIED = {408, 409, 429, 500, 502, 503, 504}
CHUNK, TOLD = 4096, 200
Scores = dict[str, int]


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and whom; no URL means that only remembered answers count."""

    url: str
    model: str
    key: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> Endpoint | None:
        """What the environment names; None without a model."""
        model = os.environ.get(MODEL, "")
        url = os.environ.get(URL, "").rstrip("/")
        return cls(url, model, os.environ.get(KEY, "")) if model else None


@dataclass(frozen=True)
class Question:
    """A prompt and the two images it is about, as PNG."""

    prompt: str
    images: tuple[bytes, bytes]


@dataclass(frozen=True)
class Limits:
    """Seconds per request, further tries, seconds before the first of them, requests at once and
    in all."""

    timeout: float = 60.0
    retries: int = 2
    pause: float = 1.0
    concurrency: int = 4
    budget: int = 200


class OutOfBudget(Exception):
    """The requests that were allowed are used up."""


class Client:
    """Scores of questions; well-formed answers are kept, and cost nothing the next time."""

    def __init__(
        self, endpoint: Endpoint, limits: Limits, parameters: Mapping[str, Any], cache: Path
    ) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self.parameters = dict(parameters)
        self.cache = cache
        self.requests = 0
        self._lock = threading.Lock()
        self._refused = threading.Event()

    def scores(self, questions: Sequence[Question]) -> list[Scores | None]:
        """The four scores of each question, None where the endpoint gave no well-formed answer.

        Raises:
            OutOfBudget: not all could be asked; the answers so far are kept.
            UserError: the endpoint refuses: its address, model or key is wrong, or what is asked.
        """
        answers: list[Scores | None] = [self.remembered(question) for question in questions]
        left = [number for number, scores in enumerate(answers) if scores is None]
        if not left or not self.endpoint.url:
            return answers
        with ThreadPoolExecutor(self.limits.concurrency) as pool:
            waiting = {number: pool.submit(self._ask, questions[number]) for number in left}
            try:
                for number in progress(left, len(left), "asking the vision-language model"):
                    answers[number] = waiting[number].result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return answers

    def remembered(self, question: Question) -> Scores | None:
        """The kept answer to a question, if there is one."""
        path = self._file(question)
        return files.read_json(path)["scores"] if path.is_file() else None

    def _file(self, question: Question) -> Path:
        content = hashlib.sha256()
        settings = (self.endpoint.model, question.prompt, self.parameters)
        content.update(json.dumps(settings, sort_keys=True).encode())
        for image in question.images:
            content.update(hashlib.sha256(image).digest())
        return self.cache / f"{content.hexdigest()}.json"

    def _ask(self, question: Question) -> Scores | None:
        pause = self.limits.pause
        for attempt in range(1 + self.limits.retries):
            if attempt:
                time.sleep(pause)
                pause *= 2
            if self._refused.is_set():
                return None
            text = self._request(question)
            scores = None if text is None else parse(text)
            if scores is not None:
                record = {"model": self.endpoint.model, "scores": scores}
                files.write_json(self._file(question), record)
                return scores
        return None

    def _request(self, question: Question) -> str | None:
        """The text of one answer; None where there was none and it may be asked again."""
        import requests
        import urllib3

        with self._lock:
            if self.requests >= self.limits.budget:
                raise OutOfBudget
            self.requests += 1
        headers = {"Authorization": f"Bearer {self.endpoint.key}"} if self.endpoint.key else {}
        latest = time.monotonic() + self.limits.timeout
        body = b""
        try:
            with requests.post(
                f"{self.endpoint.url}/chat/completions",
                json=self.payload(question),
                headers=headers,
                timeout=self.limits.timeout,
                stream=True,
            ) as answer:
                # as it comes in: `iter_content` would wait for a whole chunk
                while part := answer.raw.read1(CHUNK, decode_content=True):
                    body += part
                    if time.monotonic() > latest:
                        return None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError):
            return None
        if answer.status_code in RETRIED:
            return None
        if answer.status_code != 200:
            self._refused.set()
        if answer.status_code in REFUSED:
            raise UserError(
                f"the vision-language model's endpoint answers {answer.status_code}; check {URL}, "
                f"{MODEL} and {KEY}"
            )
        if answer.status_code != 200:
            told = " ".join(body.decode(errors="replace").split())[:TOLD]
            raise UserError(
                f"the vision-language model's endpoint answers {answer.status_code}: {told}; what "
                "is sent along is the option `request` of the metric vlm"
            )
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return None
        return text if isinstance(text, str) else None

    def payload(self, question: Question) -> dict[str, Any]:
        """The body of a request."""
        shown = [
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{base64.b64encode(image).decode()}"},
            }
            for image in question.images
        ]
        return {
            "model": self.endpoint.model,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": question.prompt}, *shown]}
            ],
            **self.parameters,
        }


def parse(text: str) -> Scores | None:
    """The four scores in an answer: a JSON object, or numbers beside their names.

    None unless all four are whole numbers from 1 to 10.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        answer: Any = json.loads(text[start : end + 1])
    except ValueError:
        pattern = r"{}\W{{1,6}}(\d+)(?!\.?\d)"
        matches = {name: re.search(pattern.format(name), text, re.I) for name in CRITERIA}
        answer = {name: int(match[1]) for name, match in matches.items() if match}
    if not isinstance(answer, dict):
        return None
    scores = {name: answer.get(name) for name in CRITERIA}
    for value in scores.values():
        if type(value) is not int or not LOWEST <= value <= HIGHEST:
            return None
    return scores  # type: ignore[return-value]
