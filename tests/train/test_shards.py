"""The pieces of a checkpoint: what is missing is told, and not read as what stood there before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jielong.errors import CheckpointError
from jielong.train.checkpoint import load_checkpoint
from jielong.train.checkpoint_state import groups_of
from jielong.train.shards import named_tensors, read_shards, stored_shapes, write_shards


def write_piece(folder: Path, number: int, piece: Tensor, first_row: int) -> None:
    """A process's rows of the tensor "model/weight", as torch.distributed.checkpoint writes them."""
    places = {"model/weight": {"saved_offsets": [first_row, 0]}}
    path = folder / f"shard-{number:05d}-model-00001-of-00001.safetensors"
    save_file({"model/weight": piece}, path, metadata={"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0"})


def test_pieces_of_two_processes_make_the_whole(tmp_path: Path) -> None:
    whole = torch.arange(14.0).view(7, 2)
    write_piece(tmp_path, 1, whole[:4].clone(), 0)
    write_piece(tmp_path, 2, whole[4:].clone(), 4)
    assert stored_shapes(tmp_path) == {"model/weight": (torch.Size([7, 2]), torch.float32)}
    found = torch.zeros(7, 2)
    read_shards(tmp_path, {"model/weight": found})
    assert torch.equal(found, whole)


def test_a_missing_first_piece_is_told(tmp_path: Path) -> None:
    """The last piece alone still tells how large the whole was."""
    write_piece(tmp_path, 2, torch.ones(3, 2), 4)
    with pytest.raises(CheckpointError, match="lacks a file .*: of model/weight 6 of 14 numbers are there. Delete"):
        stored_shapes(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_moments_of_parameters_that_no_longer_learn_are_told(tmp_path: Path) -> None:
    """Before anything is changed, and in our own words."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = named_tensors({"model": model}, {"optimizer": optimizer})
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", tensors)
    state = {
        "version": 1, "step": 1, "state": {}, "optimizers": {"optimizer": groups_of(optimizer)}, "tensors": {},
        "torch_rng": "", "shards": len(tensors), "tensor_parallel": 1,
    }  # fmt: skip
    (tmp_path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    fewer = torch.optim.AdamW(model[0].parameters())
    with pytest.raises(CheckpointError, match=r"had parameter groups of \[4\] tensors, now they are \[2\]"):
        load_checkpoint(tmp_path, {"model": model}, {"optimizer": fewer})
