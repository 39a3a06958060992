"""Judges beside a single reward model: several of them, functions, a service that may be down, late or wrong."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from jielong.align.judges import FunctionReward, HttpReward, ReplyScorer, RewardEnsemble, judged_rows
from jielong.errors import TrainingError, UsageError
from jielong.generate.engine import Completion


def reply(text: str, prompt: tuple[int, ...] = (1, 2)) -> Completion:
    return Completion(list(prompt), [3], text, [0.0], "stop")


@dataclass
class Constant:
    scores: list[float]

    def score(self, tokens: object, segments: object, ends: object) -> torch.Tensor:
        return torch.tensor(self.scores)


def test_an_ensemble_is_the_mean_or_the_least() -> None:
    models, nothing = [Constant([1.0, 4.0]), Constant([3.0, -2.0])], torch.zeros(2, 1)
    assert RewardEnsemble(models).score(nothing, None, nothing).tolist() == [2.0, 1.0]
    assert RewardEnsemble(models, "min").score(nothing, None, nothing).tolist() == [1.0, -2.0]
    assert not isinstance(RewardEnsemble(models), ReplyScorer)
    with pytest.raises(UsageError, match="combine is 'max'"):
        RewardEnsemble(models, "max")
    with pytest.raises(UsageError, match="1 model"):
        RewardEnsemble(models[:1])


def test_a_function_judges_what_it_can() -> None:
    def right(record: Any, text: str) -> float | None:
        return None if text == "?" else float(text == record)

    reward = FunctionReward(right, {(1, 2): "4", (5,): "9"})
    scores = reward.score_replies([reply("4"), reply("5"), reply("9", (5,)), reply("?")])
    assert scores[:3] == [1.0, 0.0, 1.0] and math.isnan(scores[3])
    assert isinstance(reward, ReplyScorer)
    broken = FunctionReward(lambda record, text: 1 / 0, {(1, 2): "4"})
    with pytest.raises(TrainingError, match="reward function fails on '4' and 'x'.*ZeroDivisionError"):
        broken.score_replies([reply("x")])


def test_rows_that_were_judged() -> None:
    assert judged_rows([1.0, math.nan, math.inf, 0.0], 0.5) == [0, 3]
    with pytest.raises(TrainingError, match="could not judge 2 of 4 replies; at most 40%"):
        judged_rows([1.0, math.nan, math.inf, 0.0], 0.4)
    with pytest.raises(TrainingError, match="could not judge 1 of 1"):
        judged_rows([math.nan], 1.0)


class Words:
    """A tokenizer as far as a service needs one."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


class Handler(BaseHTTPRequestHandler):
    answer: Any = None
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.asked.append(asked)
        if Handler.answer == "late":
            Handler.release.wait(10)
        content = Handler.answer(asked["items"]) if callable(Handler.answer) else b"{"
        if isinstance(content, int):
            self.send_error(content)
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass

    release = threading.Event()


@pytest.fixture
def service() -> Iterator[str]:
    Handler.asked, Handler.release = [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/score"
    Handler.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_service_is_asked_in_parts_and_answers_in_order(service: str) -> None:
    Handler.answer = staticmethod(lambda items: {"scores": [len(item["reply"]) for item in items]})
    reward = HttpReward(service, Words(), batch_rows=2)
    assert reward.score_replies([reply("a"), reply("bb"), reply("ccc")]) == [1.0, 2.0, 3.0]
    assert [len(each["items"]) for each in Handler.asked] == [2, 1]
    assert Handler.asked[0]["items"][1] == {"prompt": "1 2", "reply": "bb"}


@pytest.mark.parametrize(
    "answer",
    [
        "late",
        "broken",
        lambda items: 500,
        lambda items: {"scores": [1.0]},
        lambda items: {"score": [1.0, 1.0]},
        lambda items: [1.0, 1.0],
        lambda items: {"scores": [None, "1"]},
        lambda items: {"scores": [True, math.nan]},
    ],
)
def test_what_it_does_not_answer_properly_is_not_judged(answer: Any, service: str) -> None:
    Handler.answer = answer if isinstance(answer, str) else staticmethod(answer)
    scores = HttpReward(service, Words(), timeout_seconds=0.3).score_replies([reply("a"), reply("b")])
    assert len(scores) == 2 and all(math.isnan(score) for score in scores)


def test_a_service_that_is_down_judges_nothing() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    server.server_close()
    scores = HttpReward(f"http://127.0.0.1:{port}/", Words(), 0.5).score_replies([reply("a")])
    assert math.isnan(scores[0])
    with pytest.raises(UsageError, match="must begin with http"):
        HttpReward("file:///etc/passwd", Words())
