"""The rules of the house, enforced by reading the source: floors, sizes, forbidden calls, public names."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import jielong

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "jielong"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Imports go down only. Rooms of one floor do not know each other, except on the ground and under the roof.
FLOORS = (
    ("config", "errors", "intervals", "launch", "log", "runtime", "tensors"),
    ("model", "tokenizer"),
    ("plan", "data", "folder"),
    ("train", "generate"),
    ("align", "evaluate", "lens"),
    ("serve", "search", "export", "bench"),
    ("cli", "recipe", "stages", "report", "__init__", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OPEN_FLOORS = (0, len(FLOORS) - 1)

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 50
MAX_ARGUMENTS = 7
# What may be larger, each with its reason. Keep it short.
EXCEPTIONS = {
    "generate/engine.py Engine.generate": "the one entrance to decoding: every option of a completion is an argument",
    "generate/engine.py Engine.stream": "as generate, for one",
    "cli/verbs.py plan": "an argument is an option of the command line",
    "cli/verbs.py chat": "an argument is an option of the command line",
    "cli/verbs.py complete": "an argument is an option of the command line",
    "cli/evaluating.py evaluate": "an argument is an option of the command line",
    "cli/benching.py bench": "an argument is an option of the command line",
    "cli/serving.py serve": "an argument is an option of the command line",
    "export/run.py": "handed out alone with numpy: it has no module of ours to lean on; 500 lines at most",
}

PUBLIC = {
    "Batch", "Completion", "Engine", "JielongError", "ModelConfig", "RewardModel", "Runtime", "Tokenizer",
    "Transformer", "World", "__version__", "curate", "detect", "fit", "load", "parse_recipe", "render", "run", "save",
    "scored_logprobs", "train_step",
}  # fmt: skip


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


TREES = dict(trees())


def room(name: str) -> str:
    """model/hf.py -> model, config.py -> config."""
    return name.partition("/")[0].removesuffix(".py")


def imports(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted module below jielong) of every import of our own, wherever it stands; "" is jielong itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import; write jielong.…"
            whole = node.module or ""
            # "from jielong.evaluate import gold" imports a module, too
            found = [(f"{whole}.{alias.name}", node.lineno) for alias in node.names]
        else:
            continue
        for dotted, line in found:
            first, _, rest = dotted.partition(".")
            if first == "jielong":
                yield line, rest


def test_every_module_has_a_room() -> None:
    assert {room(name) for name in TREES} <= set(FLOOR)


def test_imports_go_down_only() -> None:
    wrong = []
    for name, tree in TREES.items():
        here = room(name)
        for line, dotted in imports(name, tree):
            there = dotted.partition(".")[0]
            if dotted == "__version__" or there == here:  # the version is a literal and lives at the door
                continue
            there = there if there in FLOOR else "__init__"
            same_open_floor = FLOOR[there] == FLOOR[here] and FLOOR[here] in OPEN_FLOORS
            if FLOOR[there] >= FLOOR[here] and not same_open_floor:
                wrong.append(f"{name}:{line}: {here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})")
    assert not wrong, "\n".join(wrong)


def test_the_import_reader_sees_all_forms() -> None:
    source = "import jielong.model.hf\nfrom jielong.evaluate import gold\nfrom jielong import __version__\n"
    nested = "def f():\n    from jielong.train.loop import fit\n"
    found = [dotted for _, dotted in imports("x.py", ast.parse(source + nested))]
    assert found == ["model.hf", "evaluate.gold", "__version__", "train.loop.fit"]


def test_the_hidden_preference_stays_hidden() -> None:
    """Only the judge's own room and the stages, which hand out labels, may import the gold preference."""
    users = {room(name) for name, tree in TREES.items() for _, dotted in imports(name, tree) if "gold" in dotted}
    assert users <= {"evaluate", "stages"}


def test_data_never_imports_the_model() -> None:
    wrong = [
        name
        for name, tree in TREES.items()
        if room(name) == "data" and any(dotted.startswith("model") for _, dotted in imports(name, tree))
    ]
    assert not wrong


def forbidden(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of every way to run code hidden in data, of getattr probing, of the environment read elsewhere."""
    modules = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] in modules)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in modules:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("eval", "exec", "compile", "hasattr"):
                yield node.lineno, f"{node.func.id}()"
            if node.func.id == "getattr" and len(node.args) == 3:
                yield node.lineno, "getattr() with a default"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "torch" and node.attr in ("load", "save"):
                yield node.lineno, f"torch.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            yield node.value.lineno, str(node.arg)


def test_nothing_forbidden_is_called() -> None:
    found = [f"{name}:{line}: {what}" for name, tree in TREES.items() for line, what in forbidden(tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(x)", "torch.save(x, y)", "eval(x)", "exec(x)",
     "np.load(x, allow_pickle=True)", "hasattr(x, 'y')", "getattr(x, 'y', None)"],
)  # fmt: skip
def test_the_reader_of_forbidden_calls_sees_them(source: str) -> None:
    assert list(forbidden(ast.parse(source)))
    assert not list(forbidden(ast.parse("model.eval()\ntorch.tensor(x)\nload(x)\ngetattr(x, name)")))


def test_the_environment_is_read_on_the_ground_only() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        if room(name) not in ("config", "launch", "runtime")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert not wrong, "\n".join(wrong)


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def num_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_size_is_a_budget() -> None:
    over, seen = [], set()
    for path in SOURCES:
        name = path.relative_to(PACKAGE).as_posix()
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            seen.add(name)
            over.append((name, f"{name} has {num_lines} lines, {MAX_FILE_LINES} are allowed"))
        for function, node in functions(TREES[name]):
            key, length = f"{name} {function}", (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                over.append((key, f"{name}:{node.lineno}: {function} has {length} lines, not {MAX_FUNCTION_LINES}"))
            if num_arguments(node) > MAX_ARGUMENTS:
                over.append((key, f"{name}:{node.lineno}: {function} has {num_arguments(node)} arguments"))
    problems = [text for key, text in over if key not in EXCEPTIONS]
    unused = set(EXCEPTIONS) - {key for key, _ in over}
    assert not problems, "\n".join(problems)
    assert not unused, f"exceptions that nothing needs any more: {unused}"


def test_no_room_for_odds_and_ends() -> None:
    refused = re.compile(r"(utils?|helpers?|common|misc|managers?|handlers?|v\d+)$")
    assert not [name for name in TREES if any(refused.search(part.removesuffix(".py")) for part in name.split("/"))]


def test_every_module_says_what_it_is() -> None:
    assert not [name for name, tree in TREES.items() if not ast.get_docstring(tree)]


def test_public_names_are_the_promised_ones() -> None:
    assert set(jielong.__all__) == PUBLIC
    assert set(dir(jielong)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_public_name_is_documented(name: str) -> None:
    value = inspect.unwrap(jielong.__dict__.get(name) or jielong.__getattr__(name))
    own = inspect.getdoc(value)
    assert own and len(own) > 20
    assert not own.startswith(f"{name}("), "a dataclass without a docstring of its own"


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jielong.nothing  # noqa: B018


def test_version_and_types_are_shipped() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?\w+)?", jielong.__version__)
    assert (PACKAGE / "py.typed").exists()


def test_make_bench_calls_what_is_there() -> None:
    called = re.findall(r"benchmarks/\w+\.py", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert called and not [script for script in called if not (ROOT / script).is_file()]


def test_extras_that_messages_name_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = project.split("[project.optional-dependencies]")[1].split("\n[project.")[0]
    extras = dict(re.findall(r"^(\w+) = (\[.*?\])", block, flags=re.MULTILINE | re.DOTALL))
    for path in SOURCES:
        for extra in re.findall(r"jielong\[(\w+)\]", path.read_text(encoding="utf-8")):
            assert extra in extras, f"{path}: pip install 'jielong[{extra}]'"
    needed = {"pyarrow", "zstandard", "huggingface_hub"}
    assert set(re.findall(r'"([a-z_]+)', extras["curate"])) == needed
