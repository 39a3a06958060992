"""Strict configuration: TOML in, frozen pydantic models out, and the small file helpers every stage shares.

A wrong setting is an error that names file, key, value, the legal values and the nearest key. The environment
variables JIELONG_DATA and JIELONG_TRACEBACK are read here and nowhere else.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import stat
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from jielong.errors import RecipeError, UsageError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Settings(BaseModel):
    """Base of every settings table: unknown keys and wrong types are errors, instances never change."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def load_toml(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file. RecipeError when it is missing, not UTF-8 or not TOML (with line and column)."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file; recipes end in .toml (try recipes/quickstart.toml)") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder, a recipe file is wanted") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None


def apply_override(mapping: Mapping[str, Any], override: str) -> dict[str, Any]:
    """A copy of `mapping` with one `table.key=value` put in. The value is read as TOML, else as a plain string.

    `run.seed=3`, `data.root=../data`, `pretrain.model.width=96`, `evaluate.skills=["story"]`.
    """
    path, equals, text = override.partition("=")
    keys = [part.strip() for part in path.split(".")]
    if not equals or len(keys) < 2 or not all(keys):
        raise UsageError(f"--set {override}: must read table.key=value, for example --set run.seed=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    result = copy.deepcopy(dict(mapping))
    table = result
    for depth, key in enumerate(keys[:-1]):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {override}: {'.'.join(keys[: depth + 1])} is a value, not a table")
    table[keys[-1]] = value
    return result


def validate(model_class: type[SettingsT], mapping: Mapping[str, Any], where: str) -> SettingsT:
    """An instance of `model_class` from a parsed table.

    where: how messages name the table, for example "recipes/smoke.toml [pretrain]".
    Raises RecipeError listing every wrong key, one a line, with its value and what is legal.
    """
    try:
        return model_class.model_validate(dict(mapping))
    except ValidationError as error:
        details = error.errors(include_url=False)
    lines = [_explain(model_class, mapping, typing.cast(Mapping[str, Any], detail)) for detail in details]
    raise RecipeError("\n".join(f"{where}: {line}" for line in lines))


def _explain(model_class: type[BaseModel], mapping: Mapping[str, Any], detail: Mapping[str, Any]) -> str:
    """One pydantic error in our words: key, value, what is wrong, what is legal."""
    location = [part for part in detail["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in location)
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        legal = sorted(_legal_keys(model_class, location[:-1]))
        guess = nearest(str(location[-1]), legal)
        hint = f"; did you mean `{guess}`?" if guess else ""
        return f"{key} = {_show(value)}: unknown key{hint} (legal keys: {', '.join(legal)})"
    if kind == "missing":
        return f"{key}: is required and not set"
    if kind == "value_error":  # raised by our own validators: the text is already ours
        return f"{key} = {_show(value)}: {context['error']}" if key else str(context["error"])
    if kind == "literal_error":
        guess = nearest(str(value), [part.strip("' ") for part in context["expected"].replace(" or ", ",").split(",")])
        hint = f"; did you mean '{guess}'?" if guess else ""
        return f"{key} = {_show(value)}: must be {context['expected']}{hint}"
    message = str(detail["msg"]).replace("Input should be", "must be").replace(" a valid", "")
    return f"{key} = {_show(value)}: {message}"


def _legal_keys(model_class: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The field names of the (nested) settings table at `location`."""
    current: type[BaseModel] = model_class
    for part in location:
        if isinstance(part, int) or part not in current.model_fields:
            continue  # an index of a list or a free name in a table of tables
        found = _settings_class(current.model_fields[part].annotation)
        if found is None:
            return []
        current = found
    return list(current.model_fields)


def _settings_class(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation such as `Model | None` or `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _settings_class(argument)
        if found is not None:
            return found
    return None


def _show(value: Any) -> str:
    """A value as the recipe would spell it, shortened."""
    if isinstance(value, dict):
        return "{...}"
    text = str(value).lower() if isinstance(value, bool) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def to_toml(mapping: Mapping[str, Any], prefix: str = "") -> str:
    """TOML text of nested tables of plain values, read back equal by `load_toml`. None is left out."""
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in mapping.items() if _is_plain(value)]
    blocks = ["\n".join(lines)] if lines else []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{_toml_key(key)}"
            body = to_toml(value, prefix=f"{name}.")
            has_own_lines = not value or any(_is_plain(inner) for inner in value.values())
            blocks.append(f"[{name}]\n{body}" if has_own_lines else body)
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping)


def _toml_key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
        return repr(value)
    if isinstance(value, str | Path):
        # JSON escapes are TOML escapes, except that JSON leaves DEL bare
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None) + "}"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def data_root(explicit: str | None) -> Path:
    """The data folder: `[data] root`, else $JIELONG_DATA, else the user's cache folder."""
    chosen = explicit or os.environ.get("JIELONG_DATA")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "jielong" / "data"


def wants_traceback() -> bool:
    """JIELONG_TRACEBACK=1: show Python's traceback for users' errors too."""
    return os.environ.get("JIELONG_TRACEBACK") == "1"


def plain(obj: Any) -> Any:
    """Settings models, dataclasses, tuples and paths as the plain JSON values they stand for."""
    if isinstance(obj, BaseModel):
        return {name: plain(value) for name, value in obj}
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: plain(obj.__dict__[field.name]) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value) for value in obj]
    return str(obj) if isinstance(obj, Path) else obj


def config_hash(obj: Any) -> str:
    """sha256 (hex) of the canonical JSON of settings, mappings or lists: equal settings, equal hash, in any order."""
    text = json.dumps(plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one and never a half.

    Temporary file in the same folder, fsync, rename, fsync of the folder. Raises OSError (a full disk) with the old
    file untouched and the temporary one removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be written in the block; then flushed to the disk and put in path's place.

    An error in the block, or after it, leaves an old `path` untouched and no temporary file. The new file may be read
    by whom the umask allows, whatever mode the library that wrote it prefers: a model folder is meant for others too.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process with our number that was killed
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable. Windows cannot open a folder, and needs no such step."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
