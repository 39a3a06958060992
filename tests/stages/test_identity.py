"""What a stage was made from: the content of its sources, which may not change behind a finished stage's back."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from jielong.align.comparisons import Comparison, pad_rows
from jielong.align.reward import RewardModel
from jielong.data.sources import Document
from jielong.folder import load
from jielong.generate.engine import Engine
from jielong.model.logprobs import token_logprobs
from jielong.runtime import Runtime
from jielong.stages import identity
from jielong.stages.comparisons import NUM_REFERENCE_REPLIES, reference_rows
from jielong.stages.context import Context
from jielong.stages.corpus import _split
from jielong.stages.identity import FileHashes, changed_file
from jielong.stages.judging import _kl
from jielong.tokenizer.chat import render

from .conftest import NOTES, RUN, notes

Invoke = Callable[..., tuple[int, str, str]]

TALKS = """
[data.sources.talks]
path = "talks.jsonl"
"""
SFT = """
[sft]
sources = ["talks"]
batch_rows = 2
num_steps = 2
learning_rate = 1e-3
"""
RECIPE = f"""{RUN}{NOTES.replace("context_tokens = 64", "context_tokens = 128")}{TALKS}
[data.sources.votes]
path = "votes.jsonl"
{SFT}
[reward]
sources = ["votes"]
batch_rows = 4
accumulate = 2
num_steps = 3
learning_rate = 1e-2
max_new_tokens = 8

[evaluate]
prompts = ["On day 7 of the journey the otter met a plover by the river"]
max_new_tokens = 8
"""
ANIMALS = ("otter", "heron", "badger", "marten", "plover", "weasel", "curlew")


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def talks(num: int, reply: str = "By the river, the {} says.") -> str:
    return lines(
        [
            {
                "messages": [
                    {"role": "user", "content": f"Where is {ANIMALS[n % 7]} {n}?"},
                    {"role": "assistant", "content": reply.format(ANIMALS[n % 5])},
                ]
            }
            for n in range(num)
        ]
    )


def write_data(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text(notes(150), encoding="utf-8")
    (folder / "talks.jsonl").write_text(talks(20), encoding="utf-8")
    votes = [
        {
            "messages": [{"role": "user", "content": f"Say {n}."}],
            "replies": ["!!!" + "~" * (n % 3), "~~~~ " * 3 + "!"],
            "ranking": [n % 2, 1 - n % 2],
        }
        for n in range(24)
    ]
    (folder / "votes.jsonl").write_text(lines(votes), encoding="utf-8")


@pytest.fixture(scope="module")
def finished(no_probe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipe.toml, data/ and run/, finished. Not to be changed: see `place`."""
    from jielong.stages.pipeline import run_recipe

    folder = tmp_path_factory.mktemp("identity")
    write_data(folder / "data")
    (folder / "files.toml").write_text(RECIPE, encoding="utf-8")
    run_recipe(folder / "files.toml", folder / "run", [f"data.root={folder / 'data'}"], quiet=True)
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of all of it."""
    return Path(shutil.copytree(finished, tmp_path / "place"))


@pytest.fixture
def again(place: Path, invoke: Invoke) -> Callable[..., tuple[int, str]]:
    """The command once more, over the copy; returns exit code and messages."""

    def call(*arguments: object) -> tuple[int, str]:
        root = ("--set", f"data.root={place / 'data'}")
        code, _, said = invoke("run", place / "files.toml", "--out", place / "run", *root, *arguments)
        return code, said

    return call


def made(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(run.glob(f"*-{stage}/stage.json")).read_text(encoding="utf-8"))
    return found


# ---- inputs of finished stages ----


def test_stages_record_the_files_they_read(finished: Path, sha256: Callable[[Path], str]) -> None:
    for stage, name in (("curate", "notes"), ("sft", "talks"), ("reward", "votes")):
        (file,) = made(finished / "run", stage)["inputs"][f"source {name}"]
        path = next((finished / "data").glob(f"{name}.*"))
        assert file == {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    assert made(finished / "run", "pretrain")["inputs"] == {}
    done = json.loads((finished / "run" / "01-curate" / "DONE").read_text(encoding="utf-8"))
    assert done["hash"] == made(finished / "run", "curate")["hash"]


def test_data_in_another_place_is_the_same_data(place: Path, again: Callable[..., tuple[int, str]]) -> None:
    os.utime(place / "data" / "notes.txt")  # another time of change, the same content
    code, said = again()
    assert code == 0 and "✓ evaluate  already done" in said


@pytest.mark.parametrize(("name", "stage"), [("notes.txt", "01-curate"), ("talks.jsonl", "04-sft"),
                                             ("votes.jsonl", "05-reward")])  # fmt: skip
def test_a_changed_input_of_a_finished_stage_is_refused(
    name: str, stage: str, place: Path, again: Callable[..., tuple[int, str]]
) -> None:
    path = place / "data" / name
    old = path.read_bytes()
    path.write_bytes(old[: len(old) // 2])
    code, said = again()
    assert code == 2
    assert f"{place / 'run' / stage} was made from a file that has changed since: {name}" in said
    assert "Put the old file back" in said and "--out" in said
    path.write_bytes(old)
    assert again()[0] == 0


def test_an_input_that_is_gone_is_not_missed(place: Path, again: Callable[..., tuple[int, str]]) -> None:
    shutil.rmtree(place / "data")
    code, said = again()
    assert code == 0 and "✓ evaluate  already done" in said


def test_a_stopped_stage_with_changed_inputs_begins_anew(place: Path, again: Callable[..., tuple[int, str]]) -> None:
    for stage in ("05-reward", "06-evaluate"):
        shutil.rmtree(place / "run" / stage)
    sft = place / "run" / "04-sft"
    (sft / "DONE").unlink()
    (sft / "kept.txt").write_text("of the first attempt")
    code, said = again("--until", "sft")
    assert code == 0 and "begins anew" not in said and (sft / "kept.txt").exists()  # nothing has changed: it goes on
    (sft / "DONE").unlink()
    old = made(place / "run", "sft")["hash"]
    (place / "data" / "talks.jsonl").write_text(talks(20, "Ask the {}."), encoding="utf-8")
    code, said = again("--until", "sft")
    assert code == 0 and "sft: talks.jsonl has changed since this stage was stopped; it begins anew" in said
    assert not (sft / "kept.txt").exists() and made(place / "run", "sft")["hash"] != old


def test_other_evaluation_prompts_want_another_curation(again: Callable[..., tuple[int, str]]) -> None:
    code, said = again("--set", "evaluate.prompts=['Who are you?']")
    assert code == 2 and "01-curate was made with other settings" in said


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    whole = identity.file_sha256
    monkeypatch.setattr(identity, "file_sha256", lambda path: read.append(path) or whole(path))
    file = tmp_path / "data" / "a.txt"
    file.parent.mkdir()
    file.write_text("one")
    first = FileHashes(tmp_path / "inputs.json").describe(file, tmp_path / "data")
    assert FileHashes(tmp_path / "inputs.json").describe(file, tmp_path / "data") == first
    assert first["path"] == "a.txt" and read == [file]
    file.write_text("two")  # of the same size
    os.utime(file, ns=(1, 1))
    assert FileHashes(tmp_path / "inputs.json").describe(file, tmp_path / "data")["sha256"] != first["sha256"]
    assert read == [file, file]


def test_what_counts_as_changed() -> None:
    one, two = ({"path": name, "bytes": 1, "sha256": name} for name in ("a", "b"))
    other = {**one, "sha256": "c"}
    assert changed_file({"s": [one]}, {"s": [one]}) is None
    assert changed_file({"s": [one]}, {"s": [other]}) == "a"
    assert changed_file({"s": [one]}, {"s": [one, two]}) == "b"
    assert changed_file({"s": [one, two]}, {"s": [one]}) == "b"
    assert changed_file({"s": [one]}, {}) is None


# ---- downloads ----


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url(finished: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(finished / "data"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_downloaded_source_is_recorded_and_watched(url: str, tmp_path: Path, invoke: Invoke) -> None:
    recipe = tmp_path / "fetched.toml"
    text = RECIPE.replace('path = "notes.txt"', f'path = "notes.txt"\nurl = "{url}/notes.txt"')
    recipe.write_text(text, encoding="utf-8")
    command = ("run", recipe, "--out", tmp_path / "run", "--set", f"data.root={tmp_path / 'data'}", "--until", "curate")
    code, _, said = invoke(*command)
    assert code == 0 and f"curate: downloading {url}/notes.txt" in said
    (file,) = made(tmp_path / "run", "curate")["inputs"]["source notes"]
    assert file["path"] == "notes.txt"
    code, _, said = invoke(*command)
    assert code == 0 and "✓ curate  already done" in said
    with open(tmp_path / "data" / "notes.txt", "a", encoding="utf-8") as notes:
        notes.write("One more line.\n")
    code, _, said = invoke(*command)
    assert code == 2 and "was made from a file that has changed since: notes.txt" in said


# ---- curation ----


def test_documents_of_the_world_are_never_divided() -> None:
    whole = SimpleNamespace(heldout_fraction=0.5, heldout="tail")
    document = Document("abcdefgh", "en", "world/facts")
    assert list(_split(document, whole, {"notes"})) == [(document, False)]
    by_hash = SimpleNamespace(heldout_fraction=0.999999, heldout="documents")
    assert list(_split(document, by_hash, {"notes"})) == [(document, False)]
    parts = list(_split(Document("abcdefgh", "en", "notes"), whole, {"notes"}))
    assert [(part.text, held) for part, held in parts] == [("abcd", False), ("efgh", True)]
    short = SimpleNamespace(heldout_fraction=0.2, heldout="tail")
    parts = list(_split(Document("ab", "en", "notes"), short, {"notes"}))
    assert [(part.text, held) for part, held in parts] == [("ab", False)]  # and no document without text


def test_own_prompts_are_kept_out_of_the_text(finished: Path) -> None:
    figures = json.loads((finished / "run" / "01-curate" / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert figures["prompts_searched"] == 1
    assert figures["removed"]["contamination"] == 1  # the line of day 7
    texts = [
        (finished / "run" / "01-curate" / name).read_text("utf-8") for name in ("documents.jsonl", "heldout.jsonl")
    ]
    assert "On day 8 of" in "".join(texts) and "On day 7 of" not in "".join(texts)


def test_a_prompt_beyond_the_context_is_refused_before_training(finished: Path, tmp_path: Path, invoke: Invoke) -> None:
    prompts = json.dumps(["Who are you?", "so " * 60])
    root = ("--set", f"data.root={finished / 'data'}", "--set", f"evaluate.prompts={prompts}")
    code, _, said = invoke("run", finished / "files.toml", "--out", tmp_path / "run", *root)
    assert code == 2
    assert "[evaluate] prompts: 'so so so" in said and "the model's context of 128; shorten it" in said
    assert not (tmp_path / "run" / "03-pretrain" / "metrics.jsonl").exists()


# ---- alignment ----


def test_scores_have_their_zero_and_unit_on_replies_of_the_sft_model(finished: Path) -> None:
    """Sampled anew with another seed: replies that the normalisation has not seen."""
    run = finished / "run"
    figures = json.loads((run / "05-reward" / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert figures["reference_replies"] == NUM_REFERENCE_REPLIES
    policy, tokenizer = load(run / "04-sft" / "model")
    reward = RewardModel.load(run / "05-reward" / "model")
    prompts = [render([{"role": "user", "content": f"Say {n}."}], tokenizer, reply=True)[0] for n in range(24)]
    runtime = Runtime(torch.device("cpu"), torch.float32)
    replies = Engine(policy, tokenizer, runtime).generate(prompts * 16, max_new_tokens=8, seed=99)
    tokens, segments, ends = pad_rows([[*reply.prompt, *reply.tokens] for reply in replies], tokenizer.pad_id)
    scores = reward.score(tokens, segments, ends)
    assert float(scores.mean()) == pytest.approx(0.0, abs=0.25)
    assert float(scores.std()) == pytest.approx(1.0, abs=0.2)


def test_reference_replies_of_the_world_are_the_first_sampled_ones(finished: Path) -> None:
    policy, tokenizer = load(finished / "run" / "04-sft" / "model")
    comparisons = [
        Comparison.from_record(
            {"messages": [{"role": "user", "content": f"{n}"}], "replies": ["a", "b", "c"], "pairs": []}
        )
        for n in range(200)
    ]
    rows = reference_rows(cast(Context, None), policy, tokenizer, comparisons, [])
    assert len(rows) == NUM_REFERENCE_REPLIES  # replies, not prompts; a tie is a reply as well
    last = [{"role": "user", "content": "170"}, {"role": "assistant", "content": "b"}]
    assert rows[-1] == render(last, tokenizer)[0]


def test_reported_kl_is_at_the_temperature_of_the_replies(finished: Path) -> None:
    run = finished / "run"
    before, tokenizer = load(run / "03-pretrain" / "model")
    after, _ = load(run / "04-sft" / "model")
    with torch.no_grad():
        after.embed.weight.mul_(3.0)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    prompt = render([{"role": "user", "content": "Say 1."}], tokenizer, reply=True)[0]
    replies = Engine(after, tokenizer, runtime).generate([prompt] * 4, max_new_tokens=6, temperature=0.5, seed=1)
    expected = 0.0
    for reply in replies:
        tokens = torch.tensor([[*reply.prompt, *reply.tokens]])
        with torch.no_grad():
            gap = token_logprobs(after(tokens), tokens, 0.5) - token_logprobs(before(tokens), tokens, 0.5)
        expected += float(gap[0, len(reply.prompt) :].sum()) / len(replies)
    context = cast(Context, SimpleNamespace(settings=SimpleNamespace(temperature=0.5), runtime=runtime))
    assert _kl(context, before, after, tokenizer, replies) == pytest.approx(expected, abs=1e-3)
    colder = cast(Context, SimpleNamespace(settings=SimpleNamespace(temperature=1.0), runtime=runtime))
    assert _kl(colder, before, after, tokenizer, replies) != pytest.approx(expected, abs=1e-2)


def test_a_model_to_start_from_is_an_input(finished: Path, tmp_path: Path, invoke: Invoke) -> None:
    shutil.copytree(finished / "run" / "03-pretrain" / "model", tmp_path / "base")
    recipe = tmp_path / "tuned.toml"
    recipe.write_text(RUN + TALKS + SFT + f'model = "{tmp_path / "base"}"\n', encoding="utf-8")
    command = ("run", recipe, "--out", tmp_path / "run", "--set", f"data.root={finished / 'data'}")
    code, _, said = invoke(*command)
    assert code == 0, said
    provenance = json.loads((tmp_path / "run" / "01-sft" / "model" / "jielong.json").read_text(encoding="utf-8"))
    assert provenance["parent"] == "../../../base"
    assert provenance["data_hash"] == made(finished / "run", "curate")["hash"]  # what the base was trained on
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    code, _, said = invoke(*command)
    assert code == 2 and f"was made from a file that has changed since: {weights}" in said
    shutil.rmtree(tmp_path / "base")
    assert invoke(*command)[0] == 0
