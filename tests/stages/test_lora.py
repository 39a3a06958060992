"""Stages that train an adapter: what they leave, that it is the merged model, and that a kill costs nothing."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jielong
from jielong.align.reward import scalar_from_policy
from jielong.model.hf import load_model
from jielong.train.adapter_folder import load_adapter
from jielong.train.lora import merge

LORA = '{rank = 2, alpha = 4, targets = ["q", "v", "down"]}'
SETTINGS = [word for stage in ("sft", "reward", "ppo") for word in ("--set", f"{stage}.lora={LORA}")]
PARENT = {"sft": "pretrain", "reward": "sft", "ppo": "sft"}


@pytest.fixture(scope="module")
def adapted(
    recipe: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory, stage_of: Callable[[Path, str], Path]
) -> Path:
    """The reference run with an adapter in each stage that may have one; the stages before are the reference's."""
    folder = tmp_path_factory.mktemp("lora") / "micro"
    shutil.copytree(reference, folder, ignore=lambda _, names: [n for n in names if n[3:] in (*PARENT, "evaluate")])
    jielong.run(recipe, folder, overrides=SETTINGS[1::2], quiet=True)
    return folder


@pytest.mark.parametrize("stage", PARENT)
def test_the_adapter_on_its_parent_is_the_model(
    stage: str, adapted: Path, stage_of: Callable[[Path, str], Path]
) -> None:
    folder = stage_of(adapted, stage)
    whole = load_model(folder / "model")
    model = load_model(stage_of(adapted, PARENT[stage]) / "model")
    before = model.state_dict()["layers.0.attention.qkv.weight"].clone()
    if stage == "reward":
        model = scalar_from_policy(model, torch.Generator())
    adapter = load_adapter(model, folder / "adapter")
    assert adapter.config.targets == ("q", "v", "down") and adapter.config.rank == 2
    merge(model)
    theirs, ours = model.state_dict(), whole.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert not torch.equal(before, ours["layers.0.attention.qkv.weight"])
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (folder / "adapter" / config["base_model_name_or_path"] / "config.json").exists()
    figures = json.loads((folder / "figures.json").read_text())["figures"]
    # one layer 32 wide, two heads of 16, q, v and down of 96 -> 32; the reward model's head beside it
    expected = 2 * (32 + 32) + 2 * (32 + 32) + 2 * (96 + 32) + (32 if stage == "reward" else 0)
    assert figures["adapter_parameters"] == expected


@pytest.mark.parametrize(("stage", "step"), [("sft", 7), ("ppo", 3)])
def test_a_killed_stage_goes_on_bit_equal(
    stage: str,
    step: int,
    recipe: Path,
    adapted: Path,
    tmp_path: Path,
    trouble: Callable[..., tuple[int, str]],
    invoke: Callable[..., tuple[int, str, str]],
    stage_of: Callable[[Path, str], Path],
    sha256: Callable[[Path], str],
) -> None:
    folder = tmp_path / "micro"
    names = ("curate", "tokenizer", "pretrain", "sft", "reward", "ppo", "evaluate")
    missing = names[names.index(stage) :]
    shutil.copytree(adapted, folder, ignore=lambda _, found: [name for name in found if name[3:] in missing])
    command = ("run", recipe, "--out", folder, "--until", stage, *SETTINGS)
    code, errors = trouble(*command, stage=stage, step=step, moment="after_step")
    assert code == -signal.SIGKILL, errors
    checkpoint = next((stage_of(folder, stage) / "checkpoints").glob("step-*"))
    weights = "policy.safetensors" if stage == "ppo" else "model.safetensors"
    assert (
        (checkpoint / weights).stat().st_size
        < 6000
        < (stage_of(adapted, stage) / "model/model.safetensors").stat().st_size
    )
    code, _, said = invoke(*command)
    assert code == 0 and "going on from" in said, said
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert sha256(stage_of(folder, stage) / file) == sha256(stage_of(adapted, stage) / file)


def test_a_wrong_target_is_refused_before_anything_runs(
    recipe: Path, tmp_path: Path, invoke: Callable[..., tuple[int, str, str]]
) -> None:
    settings = 'sft.lora={rank = 2, alpha = 4, targets = ["qq"]}'
    code, _, said = invoke("run", recipe, "--out", tmp_path / "r", "--set", settings)
    assert code == 2 and "[sft]" in said and "targets names 'qq'; did you mean 'q'" in said.replace("\n", " "), said
    settings = "sft.lora={rang = 2, alpha = 4}"
    code, _, said = invoke("run", recipe, "--out", tmp_path / "r", "--set", settings)
    assert code == 2 and "lora.rang" in said and "did you mean `rank`" in said, said
