"""The VLM metric against a local server that answers like an OpenAI-compatible one."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from counterlens.errors import UserError
from counterlens.metrics import vlm
from counterlens.metrics.base import CounterfactualSet, MetricContext, NotAvailable
from counterlens.metrics.parts.vlm_client import CRITERIA, KEY, MODEL, URL, parse
from counterlens.metrics.vlm import Options, Vlm

SECRET = "sk-not-to-be-told"
GOOD = {"validity": 9, "sparsity": 7, "proximity": 8, "realism": 6}
Reply = Callable[[int], tuple[int, Any, float]]


class Server(ThreadingHTTPServer):
    """Answers request number n with `reply(n)`: status, content of the message, seconds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply: Reply = lambda number: (200, json.dumps(GOOD), 0)
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.asked)
            server.asked.append((dict(self.headers), {"path": self.path, **body}))
            server.now += 1
            server.most = max(server.most, server.now)
        status, content, seconds = server.reply(number)
        time.sleep(seconds)
        message = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        text = content if isinstance(content, bytes) else json.dumps(message).encode()
        with server.lock:
            server.now -= 1
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except OSError:
            pass  # the client has given up

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    running = Server()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv(URL, f"http://127.0.0.1:{running.server_port}/v1/")
    monkeypatch.setenv(MODEL, "judge-1")
    monkeypatch.setenv(KEY, SECRET)
    yield running
    running.shutdown()
    running.server_close()


def pairs(count: int = 6, method: str = "cecas", side: int = 8) -> CounterfactualSet:
    random = torch.Generator().manual_seed(1)
    query, made = (torch.rand(count, 3, side, side, generator=random) for _ in range(2))
    table = pd.DataFrame({"image": np.arange(100, 100 + count)})
    return CounterfactualSet("tiny", method, 0, 1, made, query, table=table)


def judge(**options: Any) -> Vlm:
    quick = {"kind": "vlm", "task": "smile", "pause": 0.01, "timeout": 5.0, "least_side": 16}
    context = MetricContext(torch.nn.Identity(), class_names=("cat", "dog"))
    return Vlm(Options.model_validate({**quick, **options}), context)


def test_scores_are_means(server: Server) -> None:
    server.reply = lambda number: (200, json.dumps({**GOOD, "validity": 9 - number % 2}), 0)
    metric = judge(concurrency=1)
    found = metric.per_set(pairs())
    assert found["vlm_validity"] == 8.5 and found["vlm_realism"] == 6
    assert found["vlm"] == pytest.approx((8.5 + 7 + 8 + 6) / 4)
    assert set(found) == {column.name for column in metric.options.columns()}
    note = metric.notes(pairs())["vlm"]
    assert note == "judge-1, corrected prompts version 1, 50 pairs at most"


def test_the_request(server: Server) -> None:
    cf = pairs(2)
    judge().per_set(cf)
    headers, body = server.asked[0]
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("judge-1", 0)
    text, *images = body["messages"][0]["content"]
    assert "facial images" in text["text"] and "not smiling" in text["text"]
    assert all(f"- {name.capitalize()}: " in text["text"] for name in CRITERIA)
    assert "cecas" not in json.dumps(body) and "{" not in text["text"]
    assert len(images) == 2
    sent = {}
    for _, asked in server.asked:
        for place, part in enumerate(asked["messages"][0]["content"][1:]):
            kind, content = part["image_url"]["url"].split(",")
            assert kind == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
                sent.setdefault(place, []).append(np.asarray(picture))
    for place, tensor in enumerate((cf.query, cf.counterfactual)):
        assert tensor is not None
        expected = (tensor * 255).round().byte().permute(0, 2, 3, 1).numpy()
        large = expected.repeat(2, axis=1).repeat(2, axis=2)  # 8 pixels become 16
        assert {image.tobytes() for image in sent[place]} == {image.tobytes() for image in large}


def test_a_rerun_costs_nothing_and_needs_no_endpoint(server: Server, monkeypatch) -> None:
    first = judge().per_set(pairs())
    assert len(server.asked) == 6
    assert judge().per_set(pairs()) == first
    monkeypatch.delenv(URL)
    assert judge().per_set(pairs()) == first and len(server.asked) == 6
    monkeypatch.setenv(MODEL, "judge-2")
    with pytest.raises(NotAvailable, match="no answer is kept: set COUNTERLENS_VLM_URL"):
        judge().per_set(pairs())


def test_the_key_is_kept_nowhere(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        judge().per_set(pairs())
    kept = list(Path(".cache/vlm").iterdir())
    assert len(kept) == 6
    assert not any(SECRET in path.read_text() for path in kept)
    assert SECRET not in caplog.text and SECRET not in repr(judge().__dict__)


@pytest.mark.parametrize(
    "bad",
    [
        (500, "later", 0),
        (429, "slow down", 0),
        (200, "I would rather not", 0),
        (200, json.dumps({**GOOD, "realism": 11}), 0),
        (200, json.dumps({**GOOD, "realism": 7.5}), 0),
        (200, json.dumps({"validity": 3}), 0),
        (200, b"<html>", 0),
        (200, json.dumps(GOOD), 1.0),
    ],
    ids=["500", "429", "prose", "out of range", "no integer", "three missing", "html", "slow"],
)
def test_a_bad_answer_is_asked_for_again(server: Server, bad: tuple[int, Any, float]) -> None:
    server.reply = lambda number: bad if number == 0 else (200, json.dumps(GOOD), 0)
    slow = bad[2] > 0  # then a busy machine may be too slow for the others, too
    found = judge(concurrency=1, timeout=0.3 if slow else 60, retries=9).per_set(pairs(3))
    assert found["vlm"] == 7.5
    assert len(server.asked) >= 4 if slow else len(server.asked) == 4


def test_what_never_comes_is_left_out_and_told(server: Server) -> None:
    server.reply = lambda number: (200, "no" if number < 3 else json.dumps(GOOD), 0)
    metric = judge(concurrency=1, retries=2)
    assert metric.per_set(pairs(4))["vlm"] == 7.5
    assert metric.notes(pairs(4))["vlm"].endswith("; 1 without an answer")
    assert len(server.asked) == 3 + 3
    assert len(list(Path(".cache/vlm").iterdir())) == 3  # only good answers are kept


def test_nothing_well_formed(server: Server) -> None:
    server.reply = lambda number: (200, "no", 0)
    with pytest.raises(NotAvailable, match="no well-formed answer"):
        judge(retries=0).per_set(pairs(2))


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_ends_it_without_the_key(server: Server, status: int) -> None:
    server.reply = lambda number: (status, "who are you", 0)
    with pytest.raises(UserError, match=f"answers {status}; check {URL}") as caught:
        judge().per_set(pairs(3))
    assert SECRET not in str(caught.value)


def test_a_question_that_is_not_taken_is_told_at_once(server: Server) -> None:
    server.reply = lambda number: (400, b'{"error":\n "max_tokens is not supported"}', 0)
    with pytest.raises(UserError, match=r"answers 400: .*max_tokens is not supported.*`request`"):
        judge(concurrency=1).per_set(pairs(3))
    assert len(server.asked) == 1
    server.reply = lambda number: (200, json.dumps(GOOD), 0)
    judge(request={"max_completion_tokens": 50}).per_set(pairs(1))
    body = server.asked[-1][1]
    assert body["max_completion_tokens"] == 50
    assert not {"max_tokens", "seed", "temperature"} & {*body}


def test_an_answer_that_trickles_in_is_given_up(server: Server, monkeypatch) -> None:
    def trickle(handler: Handler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)

    monkeypatch.setattr(Handler, "do_POST", trickle)
    began = time.monotonic()
    with pytest.raises(NotAvailable, match="no well-formed answer"):
        judge(concurrency=1, retries=0, timeout=0.3).per_set(pairs(1))
    assert time.monotonic() - began < 3


def test_a_budget_stops_and_the_next_run_goes_on(server: Server) -> None:
    with pytest.raises(NotAvailable, match="budget of 4 requests is used up with 4 of 6 pairs"):
        judge(budget=4, concurrency=1).per_set(pairs())
    assert len(server.asked) == 4
    assert judge(budget=4).per_set(pairs())["vlm"] == 7.5
    assert len(server.asked) == 6


def test_requests_at_the_same_time(server: Server) -> None:
    server.reply = lambda number: (200, json.dumps(GOOD), 0.05)
    judge(concurrency=3).per_set(pairs(9))
    assert 2 <= server.most <= 3


def test_methods_are_asked_about_the_same_queries(server: Server) -> None:
    whole = pairs(20)
    chosen = judge(images=5).questions(whole)
    rows = np.random.default_rng(0).permutation(20)
    assert whole.query is not None
    other = CounterfactualSet(
        "tiny",
        "ace",
        0,
        1,
        1 - whole.counterfactual[rows],
        whole.query[rows],
        table=whole.table.iloc[rows].reset_index(drop=True),
    )
    assert [q.images[0] for q in judge(images=5).questions(other)] == [q.images[0] for q in chosen]


def test_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODEL, raising=False)
    with pytest.raises(NotAvailable, match=f"set {URL} and {MODEL}"):
        judge().per_set(pairs())


# Prompts


@pytest.mark.parametrize("task", vlm.prompts()["tasks"])
def test_every_task_has_a_whole_prompt(task: str) -> None:
    for verbatim in (False, True):
        text = judge(task=task, verbatim=verbatim).prompt(pairs())
        assert "{" not in text and "four criteria" in text and text.count("\n- ") == 4


def test_slips_of_the_paper_only_when_asked_for() -> None:
    ours, theirs = (judge(task="gender", verbatim=v).prompt(pairs()) for v in (False, True))
    assert "modified is gender" in ours and "modified is age" in theirs
    ours, theirs = (judge(task="bdd-oia", verbatim=v).prompt(pairs()) for v in (False, True))
    assert "traffic-scene images" in ours and "animal images" in theirs


def test_classes_are_named() -> None:
    text = judge(task="classes").prompt(pairs())
    assert 'query attribute is "cat", and the target attribute is "dog"' in text


def test_an_unknown_task() -> None:
    with pytest.raises(UserError, match="task 'frown' is unknown; known: smile, age"):
        judge(task="frown").prompt(pairs())


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"Sure! ```json\n{json.dumps(GOOD)}\n```",
        "Validity: 9\nSparsity: 7\nProximity: 8\nRealism: 6",
        "**validity** - 9, **sparsity** - 7, **proximity** - 8, **realism** - 6.",
    ],
)
def test_answers_that_are_understood(text: str) -> None:
    assert parse(text) == GOOD


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[9, 7, 8, 6]", "validity: 9", "validity: 9 sparsity: 7 proximity: 8.5 realism: 6"],
)
def test_answers_that_are_not(text: str) -> None:
    assert parse(text) is None
