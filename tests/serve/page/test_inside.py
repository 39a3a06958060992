"""What "Look inside" is told is what the model does."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from jielong.lens.attention import attention_maps
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.serve.page import inside

from ..conftest import CONTEXT, Lab

TEXT = "the cat sat there 你好"


def parse(content: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(header, the weights of each kind as fractions) as the page reads them."""
    size = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + size])
    assert (4 + size) % 4 == 0
    at, found = 4 + size, []
    for kind in header["kinds"]:
        number = int(np.prod(kind["shape"]))
        found.append(np.frombuffer(content, "<u2", number, at).reshape(kind["shape"]) / 65535)
        at += 2 * number
    assert at == len(content)
    return header, found


def test_maps(client: httpx2.Client, lab: Lab) -> None:
    reply = client.post("/api/inside/attention", json={"text": TEXT})
    header, (weights,) = parse(reply.content)
    ids = [*lab.tokenizer.prefix_ids, *lab.tokenizer.encode(TEXT)]
    expected = attention_maps(lab.model, torch.tensor(ids))["decoder"].numpy()
    assert np.abs(weights - expected).max() < 1e-5
    (kind,) = header["kinds"]
    assert kind["queries"] == kind["keys"] == [lab.tokenizer.name(token) for token in ids]
    assert not header["cut"] and len(kind["figures"]["to_first"]) == 2


def test_the_lens_ends_with_what_the_model_says(client: httpx2.Client, lab: Lab) -> None:
    found = client.post("/api/inside/lens", json={"text": TEXT}).json()
    ids = torch.tensor([[*lab.tokenizer.prefix_ids, *lab.tokenizer.encode(TEXT)]])
    with torch.no_grad():
        expected = lab.model(ids)[0].softmax(dim=-1)
    best = expected.max(dim=-1)
    assert [cell[0][2] for cell in found["top"][-1]] == best.indices.tolist()
    assert [cell[0][1] for cell in found["top"][-1]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert len(found["top"]) == 3 and len(found["tokens"]) == ids.shape[1]


def test_steps_lead_to_the_same_chances(client: httpx2.Client, lab: Lab) -> None:
    found = client.post("/api/inside/steps", json={"text": TEXT}).json()
    with torch.no_grad():
        logits = lab.model(torch.tensor([found["ids"]]))[0, -1]
    assert len(found["log_totals"]) == 39 and len(found["vectors"]) == 3
    for heat, total in ((0.1, found["log_totals"][0]), (1.0, found["log_totals"][18]), (2.0, found["log_totals"][-1])):
        expected = (logits / heat).softmax(dim=0).sort(descending=True).values[:7].exp().log()
        shown = [np.exp(score / heat - total) for _, score in found["top"]]
        assert shown == pytest.approx(expected.tolist(), rel=2e-2, abs=1e-6)


def test_a_conversation_is_looked_at_as_the_model_reads_it(client: httpx2.Client) -> None:
    talk = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "the cat"}]
    found = client.post("/api/inside/lens", json={"messages": talk}).json()
    assert found["tokens"][0] == "<|bos|>" and "<|assistant|>" in found["tokens"] and found["tokens"][-1] == "<|end|>"
    asked = client.post("/api/inside/lens", json={"messages": talk[:1]}).json()
    assert asked["tokens"][-1] == "<|assistant|>"


def test_neighbours_positions_and_parameters(client: httpx2.Client, lab: Lab) -> None:
    near = client.get("/api/inside/neighbours?token=97").json()
    table = lab.model.embed.weight[: lab.tokenizer.vocab_size].detach()
    cosines = torch.nn.functional.cosine_similarity(table, table[97][None])
    cosines[97] = -1
    assert near["token"] == "a" and near["nearest"][0][1] == int(cosines.argmax())
    found = client.get("/api/inside/positions").json()
    assert found["kind"] == "rotary" and len(found["table"]) == 96 and found["table"][0] == [1.0] * 4
    shape = client.get("/api/inside/shape").json()
    assert sum(shape["models"][0]["parts"].values()) == sum(p.numel() for p in lab.model.parameters())
    assert 174e9 < sum(shape["models"][1]["parts"].values()) < 176e9


def test_long_texts_are_cut_and_it_is_said(client: httpx2.Client) -> None:
    header, (weights,) = parse(client.post("/api/inside/attention", json={"text": "cat " * 500}).content)
    assert header["cut"] and weights.shape[2] == CONTEXT


@pytest.mark.parametrize(
    "body", [{"text": ""}, {"text": 7}, {"messages": [{"role": "king", "content": "x"}]}, {"t": 1}]
)
def test_what_cannot_be_looked_at_is_refused(client: httpx2.Client, body: dict[str, Any]) -> None:
    for path in ("attention", "lens", "steps"):
        assert client.post(f"/api/inside/{path}", json=body).status_code == 400
    for token in ("-1", "x", "99999999", ""):
        assert client.get(f"/api/inside/neighbours?token={token}").status_code == 400


def test_a_translator_shows_what_it_reads_of_its_source(lab: Lab) -> None:
    size = lab.tokenizer.vocab_size
    config = ModelConfig(
        vocab_size=size, max_length=64, width=16, encoder_layers=1, decoder_layers=2, num_heads=2, num_kv_heads=2,
        head_size=8, ffn_width=16, positions="sinusoidal", norm="layer", norm_at="post", activation="relu",
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    model.eval()
    looked = inside.look(model, lab.tokenizer, "the cat", "你好", None)
    header, weights = parse(inside.attention(model, lab.tokenizer, looked))
    shapes = {kind["kind"]: tuple(kind["shape"]) for kind in header["kinds"]}
    read, written = len(looked.source or ()), len(looked.tokens or ())
    assert shapes == {
        "decoder": (2, 2, written, written),
        "cross": (2, 2, written, read),
        "encoder": (1, 2, read, read),
    }
    assert all(np.allclose(each.sum(axis=-1), 1, atol=2e-3) for each in weights)
    table = inside.positions(model, 10, 6)["table"]
    assert table[0] == [0.0, 1.0] * 3 and table[1][:2] == pytest.approx([np.sin(1), np.cos(1)], abs=1e-3)
