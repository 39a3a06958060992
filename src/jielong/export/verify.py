"""Whether an exported model says what ours says: the same prompts through both, token by token.

Two programs that add the same numbers in another order differ in the last digits, and where two tokens are all but
equally likely, that decides between them. So a differing token is an error only when our model holds it to be clearly
worse; up to there, and in every log-probability, both must agree within a `slack` that the stored type allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jielong.errors import ModelError
from jielong.export.probe import Answer, Probe
from jielong.export.vocabulary import CONVERSATION
from jielong.generate.engine import Engine
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

NUM_TOKENS = 32
PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "12 + 30 =",
    "从前有一个",
    "def add(a, b):\n    return",
    '{"name": "',
)
TEXTS = (
    "Hello, world! It's 12345 o'clock; we'LL see.",
    "  two  spaces\tand\ttabs \n\n  lines\r\n end  ",
    "春眠不觉晓，处处闻啼鸟。3月14日",
    "naïve café, Straße, ‘quoted’ – dashes… ½ ² Ⅷ",
    "🙂👩‍👩‍👧 🇨🇳 👍🏽",
    "def f(x):\n\treturn {'a': [x**2, -1e-9], \"b\": None}  # ok\n",
    "https://example.org/path?q=1&r=%20#top",
    "Привет мир, γειά σου, שלום, مرحبا ٣٤, हिन्दी, ไทย",
    "<|end|> <|im_end|> </s> [INST]",
    "a" * 40 + " " * 17 + "!" * 9,
)


@dataclass(frozen=True)
class Verdict:
    """Of a check that was passed: how it was done, in words, and as figures."""

    text: str
    figures: dict[str, Any]


def make_probe(engine: Engine, has_chat: bool, num_tokens: int = NUM_TOKENS) -> Probe:
    """The built-in prompts as ids, cut so that each leaves room for new tokens in a short context."""
    tokenizer = engine.tokenizer
    prompts = [[*tokenizer.prefix_ids, *tokenizer.encode(text)] for text in PROMPTS]
    if has_chat:
        prompts += [render(messages, tokenizer, reply=True)[0] for messages in (CONVERSATION, CONVERSATION[:1])]
    room = max(1, engine.model.config.max_length // 2)
    return Probe([prompt[:room] for prompt in prompts], num_tokens, list(TEXTS), CONVERSATION if has_chat else None)


def compare(engine: Engine, probe: Probe, answer: Answer, slack: float, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The figures of a comparison with the engine, which stops at stop_ids as the other program did.

    slack: in nats. Raises ModelError naming the first text, prompt or token that differs by more.
    """
    _compare_ids(engine.tokenizer, probe, answer)
    made = engine.generate(probe.prompts, max_new_tokens=probe.num_tokens, temperature=0.0, stop_ids=stop_ids)
    num_tokens = num_equal = num_parted = 0
    worst = widest = 0.0
    for index, ours in enumerate(made):
        theirs = answer.tokens[index]
        same = num_same(ours.tokens, theirs)
        num_tokens, num_equal = num_tokens + len(ours.tokens), num_equal + same
        pairs = zip(ours.logprobs[:same], answer.logprobs[index][:same], strict=False)
        worst = max([worst, *(abs(one - two) for one, two in pairs)])
        # llama.cpp also ends at tokens that it knows by name from other models' chat formats
        ended = same == len(theirs) > 0 and not engine.tokenizer.decode_bytes(theirs[-1:])
        if same < max(len(ours.tokens), len(theirs)) and not ended:
            gap = _gap(engine, [*probe.prompts[index], *ours.tokens[:same]], ours.tokens, theirs, same)
            num_parted, widest = num_parted + 1, max(widest, gap)
            if gap > slack:
                mine, other = ours.tokens[same : same + 1], theirs[same : same + 1]
                raise ModelError(
                    f"verification failed: after prompt {index} and {same} equal tokens came {other}, from the engine "
                    f"{mine}, which it holds to be likelier by {gap:.3g} nats (allowed: {slack:g})"
                )
    if worst > slack:
        raise ModelError(f"verification failed: log-probabilities differ by {worst:.3g} nats (allowed: {slack:g})")
    figures: dict[str, Any] = {"prompts": len(made), "tokens": num_tokens, "equal_tokens": num_equal}
    if num_parted:
        figures |= {"replies_parted": num_parted, "max_gap_nats": widest}
    if any(answer.logprobs):
        figures["max_logprob_difference_nats"] = worst
    return {**figures, "texts": len(probe.texts), "chat": probe.conversation is not None}


def _compare_ids(tokenizer: Tokenizer, probe: Probe, answer: Answer) -> None:
    """Raises ModelError naming the first text or conversation whose ids are not ours."""
    for text, ids in zip(probe.texts, answer.ids, strict=True):
        if ids != tokenizer.encode(text):
            raise ModelError(f"verification failed: {text!r} became the tokens {ids}, here {tokenizer.encode(text)}")
    if probe.conversation is not None:
        expected = render(probe.conversation, tokenizer, reply=True)[0]
        if answer.chat != expected:
            raise ModelError(f"verification failed: a conversation became the tokens {answer.chat}, here {expected}")


def in_words(figures: dict[str, Any]) -> str:
    """The figures of `compare` as half a sentence."""
    tokens, equal = figures["tokens"], figures["equal_tokens"]
    if tokens == equal:
        words = f"{figures['prompts']} prompts, {tokens} tokens, all equal to the engine's"
    else:
        number, gap = figures["replies_parted"], figures["max_gap_nats"]
        words = (
            f"{figures['prompts']} prompts, {equal} of {tokens} tokens equal to the engine's ({number} "
            f"{'reply parts' if number == 1 else 'replies part'} where its own token is likelier by {gap:.1g} nats"
            f"{'' if number == 1 else ' at most'})"
        )
    if "max_logprob_difference_nats" in figures:
        words += f", log-probabilities within {figures['max_logprob_difference_nats']:.1g} nats"
    chat = ", a chat rendered alike" if figures["chat"] else ""
    return f"{words}; {figures['texts']} texts tokenized alike{chat}"


def num_same(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens both have in common before the first difference."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((index for index, (mine, other) in pairs if mine != other), min(len(ours), len(theirs)))


@torch.inference_mode()
def _gap(engine: Engine, ids: list[int], ours: list[int], theirs: list[int], place: int) -> float:
    """By how many nats our model holds its own token likelier than theirs; infinite when one of them has ended."""
    if place >= min(len(ours), len(theirs)):
        return float("inf")
    hidden = engine.model.hidden(torch.tensor([ids], device=engine.runtime.device))
    logprobs = engine.model.unembed(hidden[0, -1]).float().log_softmax(dim=-1)
    return float(logprobs[ours[place]] - logprobs[theirs[place]])
