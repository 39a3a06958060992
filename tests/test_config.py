"""Strict TOML: every wrong key says what is wrong and what is legal; what is written reads back equal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from jielong import config
from jielong.config import (
    Settings,
    apply_override,
    config_hash,
    data_root,
    load_toml,
    plain,
    to_toml,
    validate,
    write_atomic,
)
from jielong.errors import RecipeError, UsageError


class Inner(Settings):
    width: Annotated[int, Field(ge=1)] = 8


class Outer(Settings):
    rate: float
    schedule: Literal["cosine", "linear"] = "cosine"
    name: str = "x"
    inner: Inner = Inner()
    many: dict[str, Inner] = {}


WHERE = "my.toml [pretrain]"


def message(mapping: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        validate(Outer, mapping, WHERE)
    return str(caught.value)


def test_unknown_key_names_file_key_value_and_the_nearest() -> None:
    text = message({"rate": 1.0, "schedul": "cosine"})
    assert text.startswith(f'{WHERE}: schedul = "cosine": unknown key; did you mean `schedule`?')
    assert "inner, many, name, rate, schedule" in text


def test_unknown_nested_keys_name_the_legal_ones_of_their_table() -> None:
    assert "inner.wdth = 3: unknown key; did you mean `width`? (legal keys: width)" in message(
        {"rate": 1.0, "inner": {"wdth": 3}}
    )
    assert "many.a.wdth = 3: unknown key" in message({"rate": 1.0, "many": {"a": {"wdth": 3}}})


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({}, "rate: is required and not set"),
        ({"rate": "fast"}, 'rate = "fast": must be number'),
        ({"rate": True}, "rate = true: must be number"),
        ({"rate": 1.0, "name": 3}, "name = 3: must be string"),
        ({"rate": 1.0, "inner": {"width": 1.5}}, "inner.width = 1.5: must be integer"),
        ({"rate": 1.0, "inner": {"width": 0}}, "inner.width = 0: must be greater than or equal to 1"),
        ({"rate": 1.0, "schedule": "cosin"}, "must be 'cosine' or 'linear'; did you mean 'cosine'?"),
    ],
)
def test_wrong_values(mapping: dict[str, Any], expected: str) -> None:
    assert expected in message(mapping)


def test_all_wrong_keys_are_told_at_once() -> None:
    assert len(message({"rat": 1, "inner": {"width": "a"}}).splitlines()) == 3  # rate missing, rat unknown, width


def test_whole_numbers_do_for_floats_and_settings_are_frozen() -> None:
    settings = validate(Outer, {"rate": 1}, WHERE)
    assert settings.rate == 1.0 and isinstance(settings.rate, float)
    with pytest.raises(ValueError, match="frozen"):
        settings.rate = 2.0  # type: ignore[misc]


def test_override_reads_toml_values_and_leaves_the_original_alone() -> None:
    original = {"run": {"seed": 0}}
    assert apply_override(original, "run.seed=3") == {"run": {"seed": 3}}
    assert original == {"run": {"seed": 0}}
    assert apply_override(original, "run.name=mine") == {"run": {"seed": 0, "name": "mine"}}
    assert apply_override({}, 'e.skills=["story", "chain"]') == {"e": {"skills": ["story", "chain"]}}
    assert apply_override({}, "a.b.c = 1e-3") == {"a": {"b": {"c": 0.001}}}
    assert apply_override({}, "data.root=../shared/data") == {"data": {"root": "../shared/data"}}
    assert apply_override({}, "a.b=x=y") == {"a": {"b": "x=y"}}


@pytest.mark.parametrize("override", ["seed=3", "run.seed", "run.=3", ".seed=3", ""])
def test_override_of_another_form_is_wrong_use(override: str) -> None:
    with pytest.raises(UsageError, match=r"table\.key=value"):
        apply_override({"run": {}}, override)


def test_override_through_a_value_is_wrong_use() -> None:
    with pytest.raises(UsageError, match="run.seed is a value, not a table"):
        apply_override({"run": {"seed": 3}}, "run.seed.deep=1")


def test_load_toml_errors(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_toml(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="is a folder"):
        load_toml(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_text("[run]\nseed = = 3\n")
    with pytest.raises(RecipeError, match=r"bad\.toml: not valid TOML.*line 2"):
        load_toml(bad)
    bad.write_bytes(b"[run]\nname = '\xff'\n")
    with pytest.raises(RecipeError, match="not UTF-8 at byte 14"):
        load_toml(bad)


plain_values = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.lists(st.text()),
    st.lists(st.integers(-100, 100)),
)
tables = st.recursive(
    st.dictionaries(st.text(min_size=1), plain_values, max_size=4),
    lambda inner: st.dictionaries(st.text(min_size=1), plain_values | inner, max_size=4),
    max_leaves=12,
)


@given(tables)
def test_toml_reads_back_equal(mapping: dict[str, Any]) -> None:
    assert config.tomllib.loads(to_toml(mapping)) == mapping


def test_toml_leaves_none_out() -> None:
    assert to_toml({"run": {"name": "a", "threads": None}}) == '[run]\nname = "a"\n'


def test_hash_depends_on_values_not_on_order_or_type() -> None:
    assert config_hash({"a": 1, "b": (2, 3)}) == config_hash({"b": [2, 3], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash(Inner(width=3)) == config_hash({"width": 3})
    assert plain(Outer(rate=1.0, many={"a": Inner()}))["many"] == {"a": {"width": 8}}


def test_data_root_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JIELONG_DATA", str(tmp_path / "environment"))
    assert data_root("given") == Path("given")
    assert data_root(None) == tmp_path / "environment"
    monkeypatch.delenv("JIELONG_DATA")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root(None) == tmp_path / "jielong" / "data"


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_write_atomic_keeps_the_old_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]
