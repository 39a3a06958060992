"""Files of weights that are damaged, hostile or of another kind: one line says so, and no room is made for them."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from jielong.errors import ModelError
from jielong.model import hf
from jielong.model.hf import load_model, save_model
from jielong.model.weights import INDEX, WEIGHTS, TensorFiles, shards


@pytest.fixture
def folder(build, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    save_model(build(), tmp_path)
    return tmp_path


@pytest.fixture
def sharded(build, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    save_model(build(), tmp_path, shard_bytes=20_000)
    return tmp_path


def refusal(folder: Path) -> str:
    """What loading says; always one line that names the folder."""
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def with_header(path: Path, header: Any, length: int | None = None, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("kept", [0, 4, 8, 9, 200, 0.5, -1])  # of the header, of the tensors, all but one byte
def test_truncated(folder: Path, kept: float) -> None:
    path = folder / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert f"{WEIGHTS}: truncated or no safetensors file" in refusal(folder)


@pytest.mark.parametrize(
    ("header", "length", "data"),
    [
        (b"{}", 2**63, b""),  # a header larger than any memory
        (b"{}", 2**64 - 1, b""),
        (b"{}", 100_000_001, b""),
        (b"{}", 3, b""),
        (b"[" * 5000, None, b""),
        (b'{"a":' * 5000, None, b""),
        (b"\xff" * 64, None, b""),
        (b"[]", None, b""),
        (b'"text"', None, b""),
        ({"a": entry([2**40, 2**40], 0, 4)}, None, b"0000"),  # the product overflows
        ({"a": entry([2**50], 0, 2**52)}, None, b"0000"),  # far beyond the end of the file
        ({"a": entry([1], 4, 0)}, None, b"0000"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, None, b"0000"),  # two tensors in one place
        ({"a": entry([-1], 0, 4)}, None, b"0000"),
        ({"a": entry([1], 0, 4, "F31")}, None, b"0000"),
        ({"a": entry([1], 0, 4)}, None, b"00000000"),  # bytes that belong to nobody
        ({"a": 3}, None, b""),
        ({"__metadata__": {"format": 3}}, None, b""),
    ],
)  # fmt: skip
def test_hostile_headers(folder: Path, header: Any, length: int | None, data: bytes) -> None:
    with_header(folder / WEIGHTS, header, length, data)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        told = refusal(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "truncated or no safetensors file" in told or "tensor" in told
    assert time.perf_counter() - started < 5 and peak < 20_000_000


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzzed_files(folder: Path, data: st.DataObject) -> None:
    """Any bytes in front, any change of a few bytes of a good header: refused, or read as what it says, at once."""
    good = (folder / WEIGHTS).read_bytes() if not (folder / "good").exists() else (folder / "good").read_bytes()
    (folder / "good").write_bytes(good)
    if data.draw(st.booleans()):
        length = data.draw(st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)))
        content = struct.pack("<Q", length) + data.draw(st.binary(max_size=300))
    else:
        changed = bytearray(good)
        for _ in range(data.draw(st.integers(1, 8))):
            changed[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
        content = bytes(changed)
    path = folder / "new"
    path.write_bytes(content)
    path.rename(folder / WEIGHTS)  # the old one may still be mapped
    try:
        model = load_model(folder)
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert sum(parameter.numel() for parameter in model.parameters()) < 100_000


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
                         "num_key_value_heads", "intermediate_size", "architectures", "rope_parameters", "rms_norm_eps",
                         "model_type", "id2label", "max_position_embeddings", "jielong", "tie_word_embeddings"]),
        st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
                  st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)),
        min_size=1,
    )
)  # fmt: skip
def test_fuzzed_configs(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    good = path if not (folder / "config.good").exists() else folder / "config.good"
    content = json.loads(good.read_text())
    (folder / "config.good").write_text(json.dumps(content))
    path.write_text(json.dumps({**content, **changes}))
    try:
        load_model(folder)
    except ModelError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 10**9}, "config.json asks for 1000000000 layers; the weights hold 20 tensors"),
        ({"max_position_embeddings": 10**12}, "the longest row is 1000000000000 tokens; legal are up to 16777216"),
        ({"vocab_size": 10**12}, r"config.json asks for (1000000000000, 32)"),
        ({"head_dim": 10**9}, "config.json asks for"),
        ({"vocab_size": 2**62}, "no model can be as large as this config says"),
        ({"vocab_size": 2**70}, "no model can be as large as this config says"),
        (
            {
                "model_type": "mixtral",
                "architectures": ["MixtralForCausalLM"],
                "num_local_experts": 10**9,
                "num_experts_per_tok": 2,
            },
            "lack the tensor 'model.layers.0.block_sparse_moe.experts.0.w1.weight'",
        ),
    ],
)
def test_configs_that_promise_too_much(folder: Path, changes: dict[str, Any], told: str) -> None:
    """Refused before anything is built for a billion layers or positions."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert told in refusal(folder)


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "model.pt", "weights.pth", "old.ckpt", "model.pkl", "tf_model.h5"]
)
def test_pickle_is_refused_unread(folder: Path, file: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / file).write_bytes(b"anything")
    told = refusal(folder)
    assert f"{WEIGHTS}: the file is missing; {file} is pickle or another program's format" in told
    assert "never read" in told and "save_pretrained" in told


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_quantised_weights(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "model.norm.weight": torch.ones(32).to(dtype)}, folder / "new")
    (folder / "new").rename(folder / WEIGHTS)
    assert "model.norm.weight holds numbers of type" in refusal(folder)


def test_float64_is_read(folder: Path) -> None:
    expected = dict(load_model(folder).named_parameters())
    save_file({name: tensor.double() for name, tensor in load_file(folder / WEIGHTS).items()}, folder / "new")
    (folder / "new").rename(folder / WEIGHTS)
    assert all(torch.equal(expected[name], found) for name, found in load_model(folder).named_parameters())


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert f"{WEIGHTS}: the file is missing" in refusal(folder)


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match=f"{WEIGHTS}: this is a file; name the model folder that it stands in"):
        load_model(folder / WEIGHTS)


# Shards.


def test_sharded_is_the_same(sharded: Path, build) -> None:  # type: ignore[no-untyped-def]
    """Files of at most 20,000 bytes of tensors, but for single larger ones; read back bit for bit."""
    index = json.loads((sharded / INDEX).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and not (sharded / WEIGHTS).exists()
    assert sorted(files) == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    sizes = {file: sum(t.nbytes for t in load_file(sharded / file).values()) for file in files}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert all(size <= 20_000 or len(load_file(sharded / file)) == 1 for file, size in sizes.items())
    again = load_model(sharded)
    assert all(torch.equal(one, other) for one, other in zip(build().parameters(), again.parameters(), strict=True))


def test_their_shards_are_read_and_they_read_ours(tmp_path: Path, sharded: Path) -> None:
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(sharded)
    ours = load_model(sharded)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / INDEX).exists()
    again = load_model(tmp_path / "theirs")
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), again.parameters(), strict=True))


def test_saving_again_leaves_no_older_weights(sharded: Path, build) -> None:  # type: ignore[no-untyped-def]
    """Sharded, then whole, then in fewer shards: whoever reads the folder finds one set of weights."""
    model = build(num_kv_heads=4)
    save_model(model, sharded)
    assert [path.name for path in sharded.glob("*.safetensors*")] == [WEIGHTS]
    save_model(model, sharded, shard_bytes=40_000)
    files = set(json.loads((sharded / INDEX).read_text())["weight_map"].values())
    assert {path.name for path in sharded.glob("*.safetensors*")} == files | {INDEX}
    assert load_model(sharded).config == model.config


def test_missing_shard(sharded: Path) -> None:
    gone = sorted(sharded.glob("model-00002-of-*"))[0]
    gone.unlink()
    assert f"{gone.name}: the file is missing" in refusal(sharded)


@pytest.mark.parametrize(
    "file",
    ["../other/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..\\model.safetensors",
     "c:model.safetensors", "model.bin", "..", "", "a\0.safetensors", 7, None, ["model.safetensors"]],
)  # fmt: skip
def test_index_that_leaves_the_folder(sharded: Path, file: Any) -> None:
    """Refused by the name alone, whether or not there is such a file."""
    index = json.loads((sharded / INDEX).read_text())
    name = sorted(index["weight_map"])[0]
    index["weight_map"][name] = file
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"{INDEX}: {name!r} should be in {file!r}; legal are .safetensors files of this folder" in refusal(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_broken_index(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    assert INDEX in refusal(sharded)


def test_index_and_shards_that_differ(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.layers.9.extra"] = sorted(index["weight_map"].values())[0]
    (sharded / INDEX).write_text(json.dumps(index))
    assert "'model.layers.9.extra' should be in model-00001-of-" in refusal(sharded)


def test_shards_are_filled_in_order() -> None:
    sizes = {"a": 4, "b": 4, "c": 3, "d": 99, "e": 1}
    assert list(shards(sizes, 8)) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(shards(sizes, 1000)) == [["a", "b", "c", "d", "e"]]


def test_views_of_the_file_and_copies(folder: Path) -> None:
    """What is needed as it is stays in the file; what is read in passing is given up after a while."""
    files = TensorFiles(folder)
    name = "model.norm.weight"
    assert files.mapped(name).data_ptr() == files.mapped(name).data_ptr()
    assert torch.equal(files.passing(name), files.mapped(name))
    first = files._passing
    files._passed_bytes = 10**9
    files.passing(name)
    assert files._passing is not first
    assert files.names() == sorted(load_file(folder / WEIGHTS))


def test_no_room(folder: Path, build, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A full disk leaves the old weights in place."""
    from jielong import tensors
    from jielong.errors import StorageError

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = (folder / WEIGHTS).read_bytes()
    monkeypatch.setattr(tensors, "save_file", fail)
    with pytest.raises(StorageError, match="No space left"):
        hf.save_model(build(num_kv_heads=4), folder)
    assert (folder / WEIGHTS).read_bytes() == before
