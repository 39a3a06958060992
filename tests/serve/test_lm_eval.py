"""lm-eval's own clients over HTTP, on items of real tasks: each log-probability and each text is that in process."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jielong.evaluate.scoring import Pair, encode_pair, score_pairs
from jielong.evaluate.tasks import TASKS, read_items
from jielong.generate.engine import Engine
from jielong.runtime import Runtime
from jielong.serve.settings import ServeSettings
from jielong.tokenizer.chat import render

from .conftest import CONTEXT, NAME, Lab, Running, running

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
NAMES = ("copa", "winograd", "arc_easy")
ITEMS = 5
RUNTIME = Runtime(torch.device("cpu"), torch.float32)

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: jielong[peers]"),
    pytest.mark.skipif(
        importlib.util.find_spec("tenacity") is None, reason="tenacity is not installed: jielong[peers]"
    ),
    pytest.mark.skipif(not (SHARED / TASKS["copa"].path).parent.is_dir(), reason="the shared data are not here"),
]


@pytest.fixture(scope="module")
def served(lab: Lab) -> Iterator[Running]:
    """A server of its own: another's prefix cache would change nothing, but nothing here depends on that."""
    with running(Lab(lab.model, lab.tokenizer, ServeSettings(port=0)).service()) as found:
        yield found


def instances(kind: str, asked: list[Any]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in asked]  # type: ignore[arg-type]


def options(lab: Lab, name: str) -> list[tuple[str, str]]:
    """Options of the first items, each of which fits the tiny model: all of an item's or none."""

    def is_short(option: tuple[str, str]) -> bool:
        return len(lab.tokenizer.encode("".join(option))) < CONTEXT - 2

    items = [item for item in read_items(name, SHARED, limit=60) if all(map(is_short, item.options))]
    assert len(items) >= ITEMS
    return [option for item in items[:ITEMS] for option in item.options]


@pytest.mark.parametrize("name", NAMES)
def test_local_completions_score_as_in_process(served: Running, lab: Lab, name: str) -> None:
    """By /tokenize and /v1/completions, with nothing before a text, as lm-eval has it; so without bos here, too."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    asked = options(lab, name)
    url, num_before = f"{served.url}/v1/completions", len(lab.tokenizer.prefix_ids)
    peer = LocalCompletionsAPI(url, model=NAME, batch_size=4, max_length=CONTEXT)  # finds /tokenizer_info by itself
    assert peer.tokenizer_backend == "remote"
    told = peer.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    pairs = [encode_pair(lab.tokenizer, *option) for option in asked]
    pairs = [Pair(pair.context[num_before:], pair.continuation, pair.group) for pair in pairs]
    expected = score_pairs(lab.model, pairs, RUNTIME)
    assert len(told) == len(expected) >= 2 * ITEMS
    for (logprob, is_greedy), one in zip(told, expected, strict=True):
        assert logprob == pytest.approx(one.logprob, abs=1e-3) and bool(is_greedy) == one.greedy
    assert len({round(logprob, 3) for logprob, _ in told}) > ITEMS


def test_texts_are_those_in_process(served: Running, lab: Lab) -> None:
    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    engine, until = Engine(lab.model, lab.tokenizer, RUNTIME), {"until": ["\n\n"], "max_gen_toks": 16}
    prompts = [context for context, _ in options(lab, "copa")[::2]]
    peer = LocalCompletionsAPI(
        f"{served.url}/v1/completions", model=NAME, tokenizer_backend="remote", max_length=CONTEXT
    )
    told = peer.generate_until(instances("generate_until", [(text, until) for text in prompts]), disable_tqdm=True)
    ids = [lab.tokenizer.encode(text) for text in prompts]
    made = engine.generate(ids, max_new_tokens=16, temperature=0)
    assert told == [
        lab.tokenizer.decode(one.tokens, row).partition("\n\n")[0] for one, row in zip(made, ids, strict=True)
    ]
    chat = LocalChatCompletion(f"{served.url}/v1/chat/completions", model=NAME, max_length=CONTEXT)
    turns = [[{"role": "user", "content": text}] for text in prompts]
    asked = [(JsonChatStr(json.dumps(turn)), until) for turn in turns]
    told = chat.generate_until(instances("generate_until", asked), disable_tqdm=True)
    made = engine.generate(
        [render(turn, lab.tokenizer, reply=True)[0] for turn in turns], max_new_tokens=16, temperature=0
    )
    assert told == [one.text.partition("\n\n")[0] for one in made] and any(told)
