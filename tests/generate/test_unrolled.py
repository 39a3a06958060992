"""The unrolled step is the packed network's own forward, to the bit: logits, and the keys and values it leaves."""

from __future__ import annotations

import warnings

import pytest
import torch

from jielong.generate.packed import WEIGHTS, pack
from jielong.generate.quantize import STEADY_SIZES
from jielong.generate.rows import RowCache
from jielong.generate.unrolled import UnrolledStep, build_step
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer

from ..model.conftest import FAMILIES, SIZES, randomise

# Of the families of the model's tests, and those decoders with something that none of them has.
KNOWN = {"jie", "llama31", "qwen2"}
CHANGES = {
    "all biases": {"qkv_bias": True, "out_bias": True, "ffn_bias": True},
    "a head of keys for each": {"num_kv_heads": 4},
    "one head of keys": {"num_kv_heads": 1, "num_heads": 6, "head_size": 10},
    "scaled logits": {"logit_scale": 0.577, "logit_bias": True, "tie_embeddings": False},
}


@pytest.fixture(autouse=True)
def _plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices are torch's to multiply, also where their rows' bits depend on how many there are."""
    monkeypatch.setattr("jielong.generate.quantize.torch_is_steady", lambda num_out, num_in: True)


def build(name: str, **changes: object) -> Transformer:
    return randomise(Transformer(ModelConfig(**{**SIZES, **FAMILIES[name], "max_length": 300, **changes}))).eval()


def make_rows(network: Transformer, lengths: list[int]) -> RowCache:
    """Rows that hold so many tokens, of which any numbers will do."""
    rows = RowCache(network.config, len(lengths), torch.float32, torch.device("cpu"))
    rows.reserve(len(lengths), max(lengths) + 2)
    generator = torch.Generator().manual_seed(len(lengths))
    for row, length in enumerate(lengths):
        rows.buffer[:, row, :, :length] = torch.randn(rows.buffer[:, row, :, :length].shape, generator=generator)
    return rows


def forward(network: Transformer, ids: torch.Tensor, rows: RowCache, lengths: list[int], real: int) -> torch.Tensor:
    return network(ids[:, None], cache=rows.view(0, lengths, 1, real))[:, 0]


def check(network: Transformer, step: UnrolledStep, lengths: list[int], real: int) -> None:
    """Two tokens a row, one behind the other."""
    ours, expected = make_rows(network, lengths), make_rows(network, lengths)
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        ids = torch.randint(0, 60, (len(lengths),), generator=generator)
        logits, packed = step(ids, ours.view(0, lengths, 1, real)), forward(network, ids, expected, lengths, real)
        assert logits.shape == packed.shape and torch.equal(logits[:real], packed[:real])
        assert torch.equal(ours.buffer, expected.buffer)
        lengths = [length + 1 for length in lengths]


@pytest.mark.parametrize("case", [*sorted(KNOWN), *CHANGES])
@torch.inference_mode()
def test_equal_to_the_packed_forward_to_the_bit(case: str) -> None:
    """One row, rows filled up with others, numbers between the steady sizes; few keys, and blocks of values."""
    network = pack(build(case) if case in KNOWN else build("jie", **CHANGES[case]), "float32")
    step = build_step(network)
    assert isinstance(step, UnrolledStep)
    for lengths, real in (([0], 1), ([130], 1), ([14, 9, 9, 9], 1), ([3, 40, 0], 3), ([200, 15, 126, 127, 128], 5)):
        check(network, step, lengths, real)
        check(network, step, lengths[::-1], real)  # the same shapes in other memory
    many = torch.randint(1, 60, (17,), generator=torch.Generator().manual_seed(0)).tolist()
    check(network, step, many, 17)


@pytest.mark.parametrize("name", [name for name, fields in FAMILIES.items() if fields.get("decoder_layers") != 0])
def test_what_is_not_known_runs_its_own_forward(name: str) -> None:
    assert isinstance(build_step(pack(build(name), "float32")), UnrolledStep) == (name in KNOWN)
    assert not isinstance(build_step(build(name)), UnrolledStep)  # a model that is trained keeps its modules


@pytest.mark.parametrize(
    "changes",
    [{"embedding_scale": 5.5}, {"norm_at": "both"}, {"activation": "geglu"}, {"windows": (0, 4)},
     {"attention_softcap": 2.0}, {"embedding_norm": True}, {"positions": "sinusoidal"}, {"encoder_layers": 1}],
)  # fmt: skip
def test_one_thing_that_is_not_known_is_enough(changes: dict[str, object]) -> None:
    assert not isinstance(build_step(pack(build("jie", **changes), "float32")), UnrolledStep)


def test_float32_alone_is_unrolled() -> None:
    model = build("jie")
    assert not isinstance(build_step(pack(build("jie").bfloat16(), "float32")), UnrolledStep)
    unrolled = {kind for kind in WEIGHTS[1:] if isinstance(build_step(pack(model, kind)), UnrolledStep)}
    assert unrolled == {"float32"}


@torch.inference_mode()
def test_no_row_is_cut_among_threads() -> None:
    """128 equal rows of 684 numbers for three threads: two of them begin within a row."""
    network = pack(build("jie", ffn_width=684), "float32")
    step, num = build_step(network), torch.get_num_threads()
    assert isinstance(step, UnrolledStep)
    expected = step(torch.full((4,), 5), make_rows(network, [0] * 4).view(0, [0] * 4, 1))[:1]
    torch.set_num_threads(3)
    found = step(torch.full((128,), 5), make_rows(network, [0] * 128).view(0, [0] * 128, 1))
    torch.set_num_threads(num)
    assert torch.equal(found, expected.expand(128, -1))


@torch.inference_mode()
def test_more_rows_than_a_product_takes() -> None:
    network = pack(build("jie", decoder_layers=1), "float32")
    lengths = [1] * (STEADY_SIZES[-1] + 1)
    step = build_step(network)
    assert isinstance(step, UnrolledStep)
    check(network, step, lengths, len(lengths))


@torch.inference_mode()
def test_a_row_that_breaks_breaks_no_other_nor_the_next_step() -> None:
    """Token 5 is NaN: its row's scores are, quietly; and when it has gone nothing of it is left in the buffers."""
    model = build("jie", tie_embeddings=False)
    model.embed.weight[5] = float("nan")
    network = pack(model, "float32")
    step, lengths = build_step(network), [4, 6, 5, 7]
    for ids, real in (
        (torch.tensor([1, 5, 3, 0]), 3),
        (torch.tensor([1, 2, 3, 0]), 3),
        (torch.tensor([1, 2, 3, 5]), 2),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = step(ids, make_rows(network, lengths).view(0, lengths, 1, real))[:real]
        expected = forward(network, ids, make_rows(network, lengths), lengths, real)[:real]
        assert torch.equal(found.isfinite().all(dim=1), ids[:real] != 5)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
