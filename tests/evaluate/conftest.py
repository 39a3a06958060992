"""A model that has learned nothing but has opinions, and a data root with a few items of every benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jielong.generate.engine import Engine
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer

TEXT = (
    "Question: what is the sum of two and three? Answer: five. The cat sat on the mat because it was warm. "
    "A man is sitting on a roof. He starts pulling up roofing on a roof. "
)

ROWS = {
    "zero_shot/arc_easy.jsonl": [
        {"query": "Question: What melts ice?", "choices": ["heat", "cold water at night", "wind", "sound"], "gold": 0},
        {"query": "Question: Which is an animal?", "choices": ["a stone", "a cat", "the sea", "iron"], "gold": 1},
        {"query": "Question: What do plants need?", "choices": ["light", "noise", "gold", "plastic"], "gold": 0},
        {"query": "Question: What is wet?", "choices": ["sand", "the sun", "a brick", "water"], "gold": 3},
        {"query": "Question: What flies?", "choices": ["a bird", "a fish"], "gold": 0},
    ],
    "zero_shot/hellaswag_val.even.jsonl": [
        {"ctx": "Roof: A man is sitting on a roof. he", "label": 3,
         "endings": ["skis.", "is ripping tiles off.", "holds a cube.", "starts pulling up roofing on a roof."]},
        {"ctx": "Cats: the cat [title] sat [step] on", "label": 1, "endings": ["two", "the mat.", "a", "warm it was"]},
    ],
    "zero_shot/lambada_test.first2577.jsonl": [
        {"text": "The cat sat on the mat because it was warm"}, {"text": "the sum of two and three is five"},
        {"text": "He said \"no\", and then he said \"perhaps"},
    ],
    "zero_shot/winograd_wsc273.jsonl": [
        {"context_options": ["The cat feared the man because the cat", "The cat feared the man because the man"],
         "continuation": "was loud.", "gold": 1},
        {"context_options": ["It was warm: it", "It was warm: the mat"], "continuation": "sat.", "gold": 0},
    ],
    "zero_shot/boolq_val.jsonl": [
        {"query": "Passage: Cats sit.\nQuestion: do cats sit?", "choices": ["no", "yes"], "gold": 1},
        {"query": "Passage: Cats sit.\nQuestion: do cats fly?", "choices": ["no", "yes"], "gold": 0},
        {"query": "Passage: Men sit.\nQuestion: do men sit?", "choices": ["no", "yes"], "gold": 1},
    ],
    "blimp/blimp.jsonl": [
        {"field": "syntax", "good": "The cat sat on the mat.", "bad": "The cat sat the mat on."},
        {"field": "syntax", "good": "He was warm.", "bad": "He were warm."},
        {"field": "semantics", "good": "No man ever sat.", "bad": "A man ever sat."},
    ],
    "mmlu/mmlu.test_even.jsonl": [
        {"subject": "high_school_sums", "question": "2 + 3", "choices": ["4", "5", "6", "7"], "answer": "1"},
        {"subject": "high_school_sums", "question": "3 + 3", "choices": ["4", "5", "6", "7"], "answer": "2"},
        {"subject": "cats", "question": "Cats sit on", "choices": ["mats", "air", "fire", "light"], "answer": "0"},
    ],
    "mmlu/mmlu.dev.jsonl": [
        {"subject": "cats", "question": "Cats are", "choices": ["animals", "stones", "seas", "suns"], "answer": "0"},
        {"subject": "high_school_sums", "question": "1 + 3", "choices": ["4", "5", "6", "7"], "answer": "0"},
        {"subject": "high_school_sums", "question": "1 + 6", "choices": ["4", "5", "6", "7"], "answer": "3"},
        {"subject": "cats", "question": "Cats like", "choices": ["rain", "warmth", "noise", "iron"], "answer": "1"},
    ],
    "gsm8k/gsm8k.test_first660.jsonl": [
        {"question": "Tom has 2 cats and buys 3. How many?", "answer": "He has 2+3=<<2+3=5>>5 cats.\n#### 5"},
        {"question": "Anna had 1,250 mats.", "answer": "#### 1,250"},
    ],
    "gsm8k/gsm8k.train.jsonl": [
        {"question": f"What is {n} and 1?", "answer": f"It is {n}+1=<<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
        for n in range(2, 6)
    ],
    "human_eval/HumanEval.first82.jsonl": [
        {"prompt": "def one():\n    \"\"\" One. \"\"\"\n", "canonical_solution": "    return 1\n", "entry_point": "one",
         "test": "def check(candidate):\n    assert candidate() == 1\n"},
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def benchmark_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def opinionated() -> Engine:
    """Weights ten times the usual, so that the likelihoods of two options are never nearly equal."""
    tokenizer = Tokenizer.train([TEXT], 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_length=256, width=32, decoder_layers=2, num_heads=4, num_kv_heads=2,
        head_size=8, ffn_width=48,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.layers.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    return Engine(model.eval(), tokenizer, Runtime(device=torch.device("cpu"), dtype=torch.float32))
