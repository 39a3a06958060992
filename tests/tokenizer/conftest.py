from __future__ import annotations

import random

import pytest

from jielong.tokenizer.tokenizer import Tokenizer


def corpus() -> list[str]:
    """A small bilingual text with words, numbers, code, line ends and runs of blanks; the same each time."""
    rng = random.Random(7)
    words = "the cat sat on a red mat while it's raining and we'll say hello world café".split()
    words += "你好 世界 我们 接龙 机器 学习".split()
    marks = [", ", ". ", "\n", "\n\n", "  ", " 42 ", "() {\n    return x;\n}\n", "！", "。", "\t", "'S "]
    return [
        "".join(rng.choice(words) + rng.choice([" ", " ", rng.choice(marks)]) for _ in range(60)) for _ in range(40)
    ]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(corpus(), 420)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return Tokenizer([])
