"""The measurements in miniature: both sides learn the same, turns are counted, tables and JSON say the same."""

from __future__ import annotations

import functools
import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from jielong.bench import contender, decoding, measure, nanochat, nanogpt, training
from jielong.bench.contender import (
    FOLLOWERS,
    NUM_BATCHES,
    WARM_STEPS,
    Job,
    load_nanogpt,
    nanogpt_step,
    our_model,
    our_step,
)
from jielong.bench.measure import Choice, attention_section, memory_section, products_section
from jielong.bench.table import Section, markdown_table
from jielong.cli import main
from jielong.errors import JielongError, UsageError
from jielong.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "width": 16, "context_tokens": 8, "dtype": "float32"}

# What we need of nanoGPT's model.py: the names of its weights, its loss and its optimizer, written plainly here.
THEIR_MODEL = """
import math
from dataclasses import dataclass
import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, None, 1e-5)


class Part(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        print("a model is built")  # as the real one does; the protocol must not stumble over it
        self.config, d = config, config.n_embd
        linear = lambda a, b: nn.Linear(a, b, bias=False)
        self.transformer = Part(
            wte=nn.Embedding(config.vocab_size, d), wpe=nn.Embedding(config.block_size, d), ln_f=Norm(d),
            h=nn.ModuleList(
                Part(ln_1=Norm(d), ln_2=Norm(d), attn=Part(c_attn=linear(d, 3 * d), c_proj=linear(d, d)),
                     mlp=Part(c_fc=linear(d, 4 * d), c_proj=linear(4 * d, d)))
                for _ in range(config.n_layer)
            ),
        )
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.1)

    def forward(self, tokens, targets):
        t, n = self.transformer, self.config.n_head
        x = t.wte(tokens) + t.wpe(torch.arange(tokens.shape[1]))
        for block in t.h:
            q, k, v = (
                part.unflatten(2, (n, -1)).transpose(1, 2) for part in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=2)
            )
            scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            heads = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
            x = x + block.attn.c_proj(heads.transpose(1, 2).flatten(2))
            x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x))))
        logits = t.ln_f(x) @ t.wte.weight.t()
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        groups = [
            {"params": [p for p in self.parameters() if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
"""

# What we need of nanochat's package: its settings, the order in which a model is built, and what a step calls.
THEIR_CHAT = """
import os
from dataclasses import dataclass
import torch
import torch.nn as nn
import torch.nn.functional as F

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16}[os.environ["NANOCHAT_DTYPE"]]


@dataclass
class GPTConfig:
    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    window_pattern: str


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        print("a model is built")
        assert config.window_pattern == "L" and config.n_kv_head == config.n_head
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        assert self.embed.weight.is_meta, "its weights are drawn afterwards"

    def init_weights(self):
        nn.init.normal_(self.embed.weight, std=0.1)

    def setup_optimizer(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def forward(self, tokens, targets):
        weight = self.embed.weight.to(DTYPE)
        logits = F.embedding(tokens, weight) @ weight.t()
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)
"""


@pytest.fixture
def chat_folder(tmp_path: Path) -> Path:
    package = tmp_path / "chat" / "nanochat"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "gpt.py").write_text(textwrap.dedent(THEIR_CHAT))
    return package.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(textwrap.dedent(THEIR_MODEL))
    return tmp_path


def test_both_sides_learn_the_same(folder: Path) -> None:
    """From the same weights, on the same batches, with optimizers of their own: the losses of ten steps."""
    job = Job("jielong", rows=4, vocab_size=31, threads=1, folder=str(folder), **SMALL)
    ours, theirs = our_step(job, CPU), nanogpt_step(job, CPU)
    losses = [(ours(index), theirs(index)) for index in range(10)]
    for mine, other in losses:
        assert mine == pytest.approx(other, rel=1e-4)
    assert losses[NUM_BATCHES][0] < losses[0][0] - 0.005, "the first batch again: something is learned"


def test_the_batches_are_a_language_with_few_followers() -> None:
    job = Job("jielong", rows=50, vocab_size=31, threads=1, **SMALL)
    assert torch.equal(job.tokens(3), job.tokens(3)) and not torch.equal(job.tokens(3), job.tokens(4))
    tokens = job.tokens(0)
    pairs = {(one, other) for row in tokens.tolist() for one, other in zip(row, row[1:], strict=False)}
    followers = [sum(first == token for first, _ in pairs) for token in range(31)]
    assert max(followers) == FOLLOWERS and int(tokens.max()) < 31


def test_a_folder_without_nanogpt_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has no model.py"):
        load_nanogpt(tmp_path)


@pytest.mark.slow
def test_nanogpt_section_in_miniature(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes take turns; what they say becomes rows, ratios and a verdict on the losses."""
    monkeypatch.setattr(nanogpt, "Job", functools.partial(Job, **{k: v for k, v in SMALL.items() if k != "dtype"}))
    monkeypatch.setattr(nanogpt, "probe_flops", lambda runtime, clock: 1e9)
    section = nanogpt.nanogpt_section(folder, CPU, 2, 0.0, shapes=[(2, 31)], rivals=["nanoGPT"])
    ours, theirs = section.figures
    assert section.holds and ours["contender"] == "jielong" and theirs["contender"] == "nanoGPT"
    assert ours["ours_over_it"] == 1.0 and theirs["ours_over_it"] > 0
    assert len(ours["losses_nats"]) == WARM_STEPS
    assert ours["losses_nats"] == pytest.approx(theirs["losses_nats"], rel=1e-4)
    assert ours["tokens_per_second"] > 0 and f"{ours['tokens_per_second']:,.0f}" in section.markdown()


@pytest.mark.slow
def test_nanochat_section_in_miniature(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nanochat as it comes and in our dtype, ours Llama-shaped with Muon; every side learns."""
    sizes = {name: value for name, value in SMALL.items() if name != "dtype"}
    monkeypatch.setattr(nanochat, "Job", functools.partial(Job, **sizes | {"width": 48}))  # 128 wide within: 8/3 of it
    runtime = Runtime(torch.device("cpu"), torch.bfloat16)
    section = nanochat.nanochat_section(chat_folder, runtime, 1, 0.0, shapes=((2, 31),), compiled=False)
    names = ["jielong", "jielong, AdamW", "nanochat, float32", "nanochat, bfloat16"]
    assert [figure["contender"] for figure in section.figures] == names
    assert section.figures[0]["ours_over_it"] == 1.0 and "Llama-shaped, in bfloat16" in section.note
    as_it_comes, in_ours = (figure["losses_nats"] for figure in section.figures[2:])
    assert as_it_comes != in_ours and as_it_comes == pytest.approx(in_ours, rel=0.05), "the dtype is passed on"


def test_beside_nanochat_ours_has_as_many_weights_in_its_matrices() -> None:
    """Per layer 4 products of width x width and a feed-forward of 8 widths; Muon has them, AdamW the rest."""
    job = Job("jielong", 2, 31, 1, "", "float32", llama=True, muon=True, layers=2, heads=2, width=48, context_tokens=8)
    layers = our_model(job, CPU).layers
    assert sum(p.numel() for p in layers.parameters() if p.dim() == 2) == 2 * 12 * 48 * 48
    losses = [our_step(job, CPU)(index) for index in range(2)]
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("last", [3.03, math.nan])
def test_losses_that_differ_do_not_hold(folder: Path, monkeypatch: pytest.MonkeyPatch, last: float) -> None:
    rates, losses = {"jielong": [2.0], "nanoGPT": [1.0]}, {"jielong": [4.0, 3.0], "nanoGPT": [4.0, last]}
    monkeypatch.setattr(nanogpt, "turns", lambda *given: (rates, losses))
    monkeypatch.setattr(nanogpt, "probe_flops", lambda runtime, clock: 1e9)
    section = nanogpt.nanogpt_section(folder, CPU, 1, 0.0, shapes=[(2, 31)], rivals=["nanoGPT"])
    assert not section.holds and "DO NOT AGREE" in section.note
    assert [row[-2] for row in section.rows] == ["1.00", "2.00"]


def test_a_contender_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(JielongError, match="it: its process ended"), nanogpt.started(Job("x", 1, 2, 1), True, "it"):
        pass


def test_the_child_answers_line_by_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", ["\n", "\n"])
    job = {"side": "jielong", "rows": 2, "vocab_size": 31, "threads": torch.get_num_threads(), **SMALL}
    assert contender.main([json.dumps(job)]) == 0
    first, *steps, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert len(first["losses"]) == WARM_STEPS
    assert [step["tokens"] for step in steps] == [16, 16] and all(step["cpu_seconds"] > 0 for step in steps)
    assert last["peak_memory_bytes"] >= last["before_bytes"] > 0


def test_sections_in_miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "probe_flops", lambda runtime, clock: 2e9)
    monkeypatch.setattr(training, "probe_flops", lambda runtime, clock: 1e12)
    monkeypatch.setattr(measure, "ATTENTION_TOKENS", 64)
    monkeypatch.setattr(measure, "LENGTHS", (16, 32))
    assert [row[1] for row in products_section(CPU).rows] == ["2", "2"]
    attention = attention_section(CPU, 1)
    assert [row[0] for row in attention.rows] == ["16", "32"] and {row[-1] for row in attention.rows} == {"ours"}
    trained = training.training_section(["jie-xs"], CPU, 1, 0.0, batch_rows=1)
    assert [figure["contender"] for figure in trained.figures][:2] == ["jielong, packed", "jielong, unpacked"]
    monkeypatch.setattr(decoding, "NEW_TOKENS", 4)
    decoded = decoding.decoding_section(["jie-xs"], CPU, 1, 0.0, batches=(1,))
    assert decoded.figures[0]["tokens_per_second"] > 0


def test_what_only_a_cpu_can_say() -> None:
    gpu = Runtime(torch.device("cuda"), torch.float32)
    for section in (lambda: attention_section(gpu, 1), lambda: memory_section(gpu)):
        with pytest.raises(UsageError, match="the device is cuda"):
            section()


def test_the_verb_prints_tables_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JIELONG_ALLOCATOR", "0")
    held = {"products": True, "decoding": False}

    def fake(name: str, runtime: Runtime, choice: Choice) -> Section:
        if name == "nanochat":
            return nanochat.nanochat_section(choice.folders["nanochat"] or Path(), runtime, 1, 0.0)
        return Section(name.title(), ("a", "b"), [["1", "22"]], [{"a": 1}], f"of {choice.presets}", held[name])

    monkeypatch.setattr(measure, "measure", fake)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jielong", "bench", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
            raise SystemExit(0)
        return (int(left.value.code or 0), *capsys.readouterr())

    code, out, _ = call("products", "--presets", "jie-xs,jie-s")
    assert code == 0 and "## Products" in out and "| 1 | 22 |" in out and "of ['jie-xs', 'jie-s']" in out
    code, out, _ = call("products", "decoding", "--json")
    assert code == 1 and json.loads(out)["figures"] == {"products": [{"a": 1}], "decoding": [{"a": 1}]}
    assert "cpu" in json.loads(out)["environment"]
    code, _, err = call("trainig")
    assert code == 2 and "did you mean training?" in err
    code, _, err = call("nanogpt")
    assert code == 2 and "--nanogpt must name" in err
    code, _, err = call("nanochat", "--nanochat", "nowhere")
    assert code == 2 and "nowhere: it has no nanochat/gpt.py" in err


@pytest.mark.parametrize("compiled", [False, True])
def test_nanogpt_is_compiled_when_asked_for(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(measure, "nanogpt_section", lambda *given, rivals: asked.extend(rivals))
    measure.measure("nanogpt", CPU, Choice([], {"nanogpt": Path("x")}, 1, 0.0, compiled))
    assert asked == [name for name in nanogpt.RIVALS if compiled or "compile" not in name]


def test_a_table_lines_up() -> None:
    assert markdown_table(("a", "long"), [["22", "1"]]) == "| a  | long |\n| -- | ---- |\n| 22 | 1    |"
