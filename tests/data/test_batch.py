from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from jielong.data.batch import Batch, PairBatch, Rollout


def batch_parts() -> dict[str, Any]:
    return {
        "tokens": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        "mask": torch.tensor([[False, True, True], [False, True, False]]),
        "segments": torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.int32),
        "num_units": 3,
    }


def translated_parts() -> dict[str, Any]:
    source = {"source": torch.ones(2, 5, dtype=torch.int64), "source_segments": torch.ones(2, 5, dtype=torch.int32)}
    return {**batch_parts(), **source}


def pair_parts() -> dict[str, Any]:
    return {
        "tokens": torch.zeros(3, 4, dtype=torch.int64),
        "segments": torch.ones(3, 4, dtype=torch.int32),
        "starts": torch.tensor([1, 2, 2]),
        "ends": torch.tensor([3, 3, 3]),
        "pairs": torch.tensor([[0, 1], [0, 2]]),
        "weights": torch.tensor([0.5, 0.5]),
        "margins": torch.tensor([0.0, 1.0]),
        "targets": torch.tensor([1.0, 0.5]),
        "ref_logprobs": torch.tensor([-1.0, -2.0, -3.0]),
        "num_units": 1,
    }


def rollout_parts() -> dict[str, Any]:
    parts = batch_parts()
    for place, name in enumerate(("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")):
        parts[name] = parts["mask"].float() * (place + 1)
    return parts


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", torch.zeros(2, 3, dtype=torch.int32), r"tokens is torch.int32 \(2, 3\), must be torch.int64"),
        ("tokens", torch.zeros(6, dtype=torch.int64), r"tokens has shape \(6,\), must be \(rows, tokens\)"),
        ("mask", torch.zeros(2, 3), "mask is torch.float32"),
        ("mask", torch.zeros(2, 2, dtype=torch.bool), r"mask is torch.bool \(2, 2\), must be torch.bool \(2, 3\)"),
        ("segments", torch.zeros(2, 3, dtype=torch.int64), "segments is torch.int64"),
        ("num_units", -1, "num_units is -1"),
        ("source", torch.zeros(3, 5, dtype=torch.int64), r"source is torch.int64 \(3, 5\), must be .*\(2, 5\)"),
        ("source", None, "source and source_segments belong together"),
    ],
)
def test_batch_refuses_wrong_shapes_and_dtypes(name: str, value: Any, message: str) -> None:
    Batch(**batch_parts())
    with pytest.raises(ValueError, match=message):
        Batch(**{**translated_parts(), name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ends", torch.tensor([3, 3]), r"ends is torch.int64 \(2,\)"),
        ("pairs", torch.tensor([0, 1]), r"pairs is torch.int64 \(2,\), must be torch.int64 \(2, 2\)"),
        ("weights", torch.ones(3), r"weights is torch.float32 \(3,\)"),
        ("margins", torch.ones(3), r"margins is torch.float32 \(3,\)"),
        ("targets", torch.ones(2, dtype=torch.int64), "targets is torch.int64"),
        ("ref_logprobs", torch.ones(2), r"ref_logprobs is torch.float32 \(2,\)"),
        ("starts", torch.ones(3), "starts is torch.float32"),
        ("segments", torch.ones(3, 4), "segments is torch.float32"),
    ],
)
def test_pair_batch_refuses_wrong_shapes_and_dtypes(name: str, value: Any, message: str) -> None:
    PairBatch(**pair_parts())
    with pytest.raises(ValueError, match=message):
        PairBatch(**{**pair_parts(), name: value})


@pytest.mark.parametrize("name", ["logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"])
def test_rollout_checks_each_of_its_tensors(name: str) -> None:
    Rollout(**rollout_parts())
    for wrong in (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match=f"{name} is"):
            Rollout(**{**rollout_parts(), name: wrong})


@pytest.mark.parametrize("index", [torch.tensor([1]), slice(1, 2)])
def test_rollout_rows_pick_every_tensor_and_count_anew(index: Any) -> None:
    parts = rollout_parts()
    picked = Rollout(**parts).rows(index)
    assert picked.num_units == 1
    for field in dataclasses.fields(picked):
        if field.name != "num_units":
            assert torch.equal(vars(picked)[field.name], parts[field.name][1:2]), field.name


def test_to_moves_every_tensor() -> None:
    assert Batch(**batch_parts()).to("meta").source is None
    for whole in (Batch(**translated_parts()), PairBatch(**pair_parts()), Rollout(**rollout_parts())):
        moved = whole.to("meta")
        assert type(moved) is type(whole)
        assert moved.num_units == whole.num_units
        for name, value in vars(moved).items():
            if name != "num_units":
                assert value.device.type == "meta", name
