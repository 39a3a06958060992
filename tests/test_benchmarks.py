"""The benchmark scripts: arithmetic on hand-made runs and logs, tiny programs as children, speed in miniature."""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib
import json
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from jielong.data.encoding import Plan, encode_corpus
from jielong.data.shards import read_index, verify
from jielong.tokenizer import Tokenizer

FOLDER = Path(__file__).parent.parent / "benchmarks"
NANOGPT_LOG = """\
step 0: train loss 4.2, val loss 4.3000
iter 0: loss 4.2, time 900.00ms, mfu -100.00%
iter 10: loss 3.1, time 50.00ms, mfu 0.10%
iter 20: loss 2.9, time 70.00ms, mfu 0.10%
step 250: train loss 2.0, val loss 2.1000
saving checkpoint to out
iter 250: loss 2.0, time 800.00ms, mfu 0.10%
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a script of benchmarks/ by name, its siblings importable as they are when it is started."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def stage(kind: str, figures: dict[str, Any], passed: bool | None = True) -> dict[str, Any]:
    return {"kind": kind, "seconds": 10.0, "figures": figures, "rules": [{"rule": f"rule of {kind}", "passed": passed}]}


def report(win_rate: float = 0.7) -> dict[str, Any]:
    skills = {"facts_unseen": 0.9, "arithmetic": 0.8, "translation": 1.0}
    stages = {
        "pretrain": stage("pretrain", {"heldout_bits_per_byte": 1.0, "fivegram_bits_per_byte": 1.2}),
        "ppo": stage(
            "ppo",
            {
                "gold_win_rate": win_rate,
                "gold_win_rate_ci95": [win_rate - 0.05, win_rate + 0.05],
                "heldout_bits_per_byte_before": 1.5,
                "heldout_bits_per_byte_after": 1.75,
            },
        ),
        "evaluate": {**stage("evaluate", {"exact_match": {"base": {"facts_unseen": 0.1}, "sft": skills}}), "rules": []},
    }
    totals = {"seconds": 30.0, "peak_memory_bytes": 10**9, "stages_done": 3, "stages": 3}
    return {
        "stages": stages,
        "totals": totals,
        "environment": {"cores": 2},
        "process": {"seconds": 33.0, "peak_memory_bytes": 2 * 10**9},
    }


def test_rows_over_seeds(script: Any) -> None:
    reports = [report(0.70), report(0.72), report(0.60)]
    reports[1]["stages"]["pretrain"]["rules"][0]["passed"] = False
    rows = {(row.stage, row.name): row for row in script("over_seeds").build_rows(reports)}
    win = rows["ppo", "gold_win_rate"]
    assert (win.mean, win.low, win.high) == (pytest.approx(2.02 / 3), 0.60, 0.72)
    assert (win.passed, win.holds) == ([True, True, False], False)
    assert rows["ppo", "gold_win_rate_ci95"].rule == "rule of ppo"
    assert rows["ppo", "gold_win_rate_ci95"].mean is None
    assert rows["ppo", "alignment_tax_bits_per_byte"].values == [0.25] * 3
    pretrain = rows["pretrain", "heldout_bits_per_byte"]
    assert (pretrain.passed, pretrain.holds) == ([True, False, True], False)
    assert rows["evaluate", "exact_match.sft.arithmetic"].holds is True
    assert rows["run", "peak_memory_bytes"].values == [2 * 10**9] * 3
    assert rows["run", "seconds.process"].rule == "≤ 900 s"


def test_a_rule_without_its_figure_is_not_measured(script: Any) -> None:
    build_rows = script("over_seeds").build_rows
    lacking = report()
    del lacking["stages"]["evaluate"], lacking["stages"]["ppo"]["figures"]["gold_win_rate_ci95"]
    lacking["stages"]["ppo"]["rules"][0]["passed"] = None
    rows = {row.name: row for row in build_rows([report(), lacking])}
    assert rows["exact_match.sft.arithmetic"].passed == [True, None]
    assert rows["exact_match.sft.arithmetic"].holds is None
    alone = {row.name: row for row in build_rows([lacking])}
    assert alone["gold_win_rate_ci95"].rule == "rule of ppo" and alone["gold_win_rate_ci95"].holds is None
    assert alone["exact_match.sft.arithmetic"].rule and alone["exact_match.sft.arithmetic"].holds is None
    assert "exact_match.sft.arithmetic" not in {row.name for row in build_rows([lacking], targets=False)}


def test_pooled_win_rate_by_hand(script: Any) -> None:
    pooled_win_rate = script("over_seeds").pooled_win_rate
    pooled = pooled_win_rate([report(0.70), report(0.72), report(0.74)])
    half = 4.303 * 0.02 / 3**0.5  # t with 2 degrees of freedom, deviation 0.02
    assert pooled["ci95"] == [pytest.approx(0.72 - half), pytest.approx(0.72 + half)]
    assert pooled["holds"] is True
    assert pooled_win_rate([report(0.5), report(0.6), report(0.7)])["holds"] is False  # 60 % ± 25 %
    assert pooled_win_rate([report(0.7), report(0.7)])["holds"] is None
    assert pooled_win_rate([report(), {}])["win_rate"] is None


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("seconds.curate", 0.25, "0.2 s"),
        ("gold_win_rate_ci95", [0.5, 0.75], "50.0 % – 75.0 %"),
        ("peak_memory_bytes", 1_500_000_000, "1.50 GB"),
        ("parameters", 860_000, "860,000"),
        ("heldout_bits_per_byte", 1.23456, "1.235"),
        ("round_trip_exact", True, "yes"),
        ("mfu", None, "–"),
    ],
)
def test_figures_are_shown_with_their_units(script: Any, name: str, value: Any, text: str) -> None:
    assert script("over_seeds").shown(name, value) == text


def write_run(folder: Path, seed: int, content: dict[str, Any]) -> None:
    (folder / f"seed-{seed}").mkdir(parents=True)
    (folder / f"seed-{seed}" / "report.json").write_text(json.dumps(content))


def test_table_only_judges_what_is_there(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = script("seeds")
    arguments = ["r.toml", "--out", str(tmp_path), "--seeds", "1", "2", "3", "--table-only"]
    write_run(tmp_path, 1, report(0.70))
    write_run(tmp_path, 2, report(0.72))
    assert seeds.main(arguments) == 1
    assert "not finished: seed 3" in capsys.readouterr().out
    write_run(tmp_path, 3, report(0.74))
    assert seeds.main(arguments) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["holds"] is True and table["pooled"]["win_rate"] == pytest.approx(0.72)
    assert "| gold_win_rate " in (tmp_path / "table.md").read_text()
    failing = copy.deepcopy(report())
    failing["stages"]["pretrain"]["rules"][0]["passed"] = False
    (tmp_path / "seed-3" / "report.json").write_text(json.dumps(failing))
    assert seeds.main(arguments) == 1
    assert "**no**: seed 3" in capsys.readouterr().out


def test_each_seed_is_run_and_measured_once(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = script("seeds")
    program = tmp_path / "fake.py"
    program.write_text(
        textwrap.dedent("""
        import json, pathlib, sys
        folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "arguments.json").write_text(json.dumps(sys.argv[1:]))
        (folder / "report.json").write_text(REPORT)
        sys.exit(3 if "run.seed=2" in sys.argv else 0)
        """).replace("REPORT", repr(json.dumps(report())))
    )
    monkeypatch.setattr(seeds, "JIELONG", (sys.executable, str(program)))
    out = tmp_path / "out"
    arguments = ["r.toml", "--out", str(out), "--set", "run.threads=1", "--jobs", "2"]
    assert seeds.main([*arguments, "--seeds", "1", "3", "4"]) == 0
    found = json.loads((out / "seed-1" / "arguments.json").read_text())
    assert found[:2] == ["run", "r.toml"]
    assert found[-4:] == ["--set", "run.seed=1", "--set", "run.threads=1"]
    (session,) = json.loads((out / "seed-1.sessions.json").read_text())
    assert session["seconds"] > 0 and session["peak_memory_bytes"] > 10**6
    assert seeds.main([*arguments, "--seeds", "1"]) == 0
    assert json.loads((out / "seed-1.sessions.json").read_text()) == [session]
    assert seeds.main([*arguments, "--seeds", "2"]) == 1


def test_a_child_is_measured(script: Any, tmp_path: Path) -> None:
    program = "import os, sys; x = bytearray(90_000_000); print(os.environ['GIVEN'], os.getcwd()); sys.exit(5)"
    command = [sys.executable, "-c", program]
    child = script("child").run_child(command, tmp_path / "log", tmp_path, {"GIVEN": "here"})
    assert child.exit_code == 5
    assert child.peak_memory_bytes > 90_000_000
    assert child.output.split() == ["here", str(tmp_path.resolve())]
    assert child.seconds > 0


def test_nanogpt_steps_and_losses_are_read(script: Any) -> None:
    shakespeare = script("shakespeare")
    seconds, loss = shakespeare.parse_nanogpt(NANOGPT_LOG, num_steps=2000)
    assert seconds == pytest.approx(2000 * 0.060)  # steps 0 and 250 evaluate as well, and are left out
    assert loss == 2.1
    with pytest.raises(shakespeare.ChildFailed, match="no validation loss"):
        shakespeare.parse_nanogpt("", 10)


def test_nanogpt_gets_the_text_of_the_data_root(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shakespeare = script("shakespeare")
    monkeypatch.setattr(shakespeare.importlib.util, "find_spec", lambda name: object())
    folder, root = tmp_path / "nanogpt", tmp_path / "data"
    data = folder / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    with pytest.raises(shakespeare.ChildFailed, match="no train.py"):
        shakespeare.prepare_nanogpt(folder, root, tmp_path / "log")
    (folder / "train.py").touch()
    (root / "tinyshakespeare").mkdir(parents=True)
    (root / "tinyshakespeare" / "input.txt.gz").write_bytes(gzip.compress(b"First Citizen"))
    (data / "prepare.py").write_text(
        "for n in ('train.bin', 'val.bin', 'meta.pkl'): open(n, 'w').write(open('input.txt').read())"
    )
    shakespeare.prepare_nanogpt(folder, root, tmp_path / "log")
    assert (data / "val.bin").read_text() == "First Citizen"
    (data / "prepare.py").unlink()
    shakespeare.prepare_nanogpt(folder, root, tmp_path / "log")  # prepared already: nothing to do


def test_shakespeare_table_and_verdicts(script: Any) -> None:
    shakespeare = script("shakespeare")
    theirs = [shakespeare.Timed(100.0, 90.0, 1.886)]
    ours = shakespeare.Contender("jielong", 2000, [shakespeare.Timed(60.0, 40.0, 1.65)])
    fewer = shakespeare.Contender("jielong", 500, [shakespeare.Timed(45.0, 10.0, 1.87)])
    table = shakespeare.comparison([shakespeare.Contender("nanoGPT", 2000, theirs), ours, fewer], 1.89)
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()[2:]]
    assert cells[1:3] == [["100.00", "60.00", "45.00"], ["1.00", "0.60", "0.45"]]
    assert cells[4] == ["45.00", "20.00", "20.00"]
    assert cells[5:] == [["1.8860", "–", "–"], ["1.8900", "–", "–"], ["–", "1.6500", "1.8700"]]
    assert [holds for _, holds in shakespeare.judge(ours, fewer, theirs)] == [True] * 4
    slow = shakespeare.Contender("jielong", 500, [shakespeare.Timed(51.0, 10.0, 1.89)])
    assert [holds for _, holds in shakespeare.judge(ours, slow, theirs)] == [True, False, True, False]
    alone = shakespeare.comparison([ours, fewer], None)
    assert "estimate" not in alone and "nanoGPT" not in alone


def test_contenders_take_turns(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timing, calls = script("timing"), list[Any]()

    def work(name: str) -> Any:
        def note() -> int:
            calls.append(name)
            return 5

        return note

    rates = timing.interleaved({"a": work("a"), "b": work("b")}, num_blocks=2, block_seconds=0.0)
    assert calls == ["a", "b", "a", "b", "b", "a"]  # a warm-up each, then forwards, then backwards
    assert [len(found) for found in rates.values()] == [2, 2]
    assert timing.median_ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}, "a", "b") == 3.0
    calls.clear()
    monkeypatch.setattr(time, "sleep", calls.append)
    timing.interleaved({"a": work("a"), "b": work("b")}, 1, 0.0, rest_seconds=0.3)
    assert calls == ["a", "b", 0.3, "a", 0.3, "b"], "the threads of the one before come to rest first"


SCRIPTS = ["seeds", "shakespeare", "training_speed", "decode_speed", "load_speed", "labels_curve", "gpt1_ablation"]
SCRIPTS += ["engine_speed", "serve_load", "beam_speed", "loader_speed", "gradient_overlap", "muon_speed"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_there(script: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        script(name).main(["--help"])
    assert left.value.code == 0 and "usage" in capsys.readouterr().out


def options(script: Any, *arguments: str) -> Any:
    parser = script("timing").speed_parser("", ["jie-xs"], block_seconds=0.0)
    for name, value in (
        ("batch-rows", 2),
        ("context-tokens", 16),
        ("documents-per-row", 2),
        ("prompt-tokens", 4),
        ("new-tokens", 6),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args(["--vocab-size", "300", "--blocks", "1", "--dtypes", "float32", *arguments])


def test_training_speed_in_miniature(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("training_speed")
    monkeypatch.setattr(speed, "probe_flops", lambda runtime: 1e12)
    chosen = options(script)
    (runtime,) = script("timing").runtimes(chosen)
    config = speed.preset_config("jie-xs", 300, 16)
    batch = speed.make_batch(config, 2, 2, runtime)
    assert batch.segments.tolist() == [[1] * 8 + [2] * 8] * 2
    assert batch.num_units == 2 * 14
    assert speed.our_step(config, batch, runtime)() == speed.their_step(config, batch, runtime)() == 32
    rows = speed.measure("jie-xs", runtime, chosen)
    assert [row[2] for row in rows] == ["jielong, packed", "jielong, unpacked", "transformers, unpacked"]
    assert rows[-1][-1] == "1.00"


def test_gradient_overlap_in_miniature(
    script: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overlap = script("gradient_overlap")
    monkeypatch.setattr(overlap, "relaunch_with_allocator", lambda: None)
    sizes = ["--vocab-size", "300", "--batch-rows", "2", "--context-tokens", "16", "--blocks", "2", "--steps", "1"]
    assert overlap.main(["--presets", "jie-xs", "--dtype", "float32", *sizes]) == 0
    table = capfd.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in table[2:5]] == [overlap.ALONE, overlap.AFTER, overlap.DURING]
    assert table[3].split("|")[-2].strip() == "1.00" and "2 processes" in table[6]


def test_muon_speed_in_miniature(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = script("muon_speed")
    monkeypatch.setattr(speed, "relaunch_with_allocator", lambda: None)
    threads = torch.get_num_threads()
    assert speed.main(["--presets", "jie-xs", "--steps", "2", "--threads", str(threads)]) == 0
    table = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[3] for row in table[2:4]] == ["torch.optim.Muon", "together"] and table[2][6] == "1.00"
    assert table[2][7] == table[3][7] and int(table[3][2]) > 4
    monkeypatch.setattr(speed.StackedMuon, "step", lambda self: None)
    assert {row[-1] for row in speed.measure("jie-xs", 1)} == {"no"}, "what differs is told"


def test_all_engines_decode_the_same_tokens(script: Any) -> None:
    speed, chosen = script("decode_speed"), options(script)
    (runtime,) = script("timing").runtimes(chosen)
    tokenizer = speed.Tokenizer.train(["a few words, and a few more words"], 270)
    rows = speed.measure("jie-xs", 3, runtime, tokenizer, chosen)
    assert [row[3] for row in rows] == ["jielong", "jielong, packed", "jielong, Batcher", "transformers"]
    assert {row[-1] for row in rows} == {"100.0 %"}
    assert speed.agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 0.75
    model = speed.build("jie-xs", tokenizer, chosen.prompt_tokens + chosen.new_tokens, runtime)
    decoded = speed.our_decode(model, tokenizer, [[5, 6, 7]], 6, runtime)()
    assert len(set(decoded[0])) > 2, "a model that repeats one token makes the comparison empty"


def test_engine_speed_in_miniature(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = script("engine_speed")
    small = {"width": 32, "decoder_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_size": 16, "ffn_width": 64}
    monkeypatch.setattr(speed, "SHAPE", small)
    tokenizer = speed.build_tokenizer(600)
    assert tokenizer.vocab_size == 600
    model = speed.build_model(600, 40)
    prompts = [[300, 301, 302], [400, 5, 6]]
    speed.jielong.save(model, tokenizer, tmp_path)
    found = {**speed.ours(model, tokenizer, prompts, 5), **speed.of_transformers(tmp_path, prompts, 5)}
    assert [work() for work in found.values()] == [10] * 10
    options = type(
        "Options",
        (),
        {
            "new_tokens": 5, "contenders": ["jielong", "transformers"], "blocks": 1, "block_seconds": 0.0,
            "cpu_time": False,
        },
    )  # fmt: skip
    speed.measure(1, options, tmp_path, 1)  # each in a process of its own
    told = capsys.readouterr().out
    assert "| jielong float32" in told and "| transformers bfloat16" in told


def test_both_beams_find_the_same(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    speed = script("beam_speed")
    chosen = ["--random", "--sentences", "6", "--rows", "3", "--beam", "2", "--new-tokens", "5", "--blocks", "1"]
    assert speed.main(chosen) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [(row[1].strip(), row[-2].strip()) for row in rows] == [
        ("jielong", "100.0 %"), ("transformers", "100.0 %"), ("jielong, served", "100.0 %")
    ]  # fmt: skip
    one, other = speed.Hypothesis([1, 2], -1.0, 0.0), speed.Hypothesis([1, 3], -1.0, 0.0)
    assert speed.same_share([[one], [one, other]], [[one], [other, one]]) == 0.5


def test_load_speed_in_miniature(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("load_speed")
    for name, small in (("VOCAB", 300), ("WIDTH", 64), ("FFN", 96)):
        monkeypatch.setattr(speed, name, small)
    speed.make_folder(tmp_path, 0.001, "bfloat16")
    ours, theirs = (speed.load_once(name, tmp_path) for name in (speed.OURS, speed.THEIRS))
    assert ours.keys() == theirs.keys() == {"load", "first logits", "computed", "memory", "told"}
    assert ours["told"] == pytest.approx(theirs["told"], rel=1e-5)


def test_loader_speed_in_miniature(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repeated corpora are whole ones: their checksums hold, and each repetition holds the same tokens."""
    speed = script("loader_speed")
    monkeypatch.setattr(speed, "TEXT_BYTES", 60_000)
    world, tokenizer = tmp_path / "world.jsonl", tmp_path / "tokenizer-world-300"
    speed.write_world(world, speed.TEXT_BYTES)
    Tokenizer.train(speed.read_texts(world), 300).save(tokenizer)
    encode_corpus(tmp_path / "encoded-world-300-0", Plan(world, tokenizer), 1)
    folders = speed.make_corpora(tmp_path, argparse.Namespace(vocab_sizes=[300], megabytes=[0.03, 0.06, 0.3]))
    small, once, often = folders.values()
    for folder in folders.values():
        verify(folder)
    assert speed.Reader(small, 64).num_tokens < speed.Reader(once, 64).num_tokens
    tokens = (once / "00-00000.bin").read_bytes()
    assert (often / "00-00000.bin").read_bytes() == tokens * 5
    assert read_index(often).sources["all"][0].num_documents == 5 * read_index(once).sources["all"][0].num_documents
    assert speed.Reader(often, 64).seconds_per_token(3) > 0
    assert set(speed.start_once(often, 64)) == {"seconds", "wall", "peak_megabytes"}


def test_gains_are_paired_by_seed(script: Any) -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1; 4.303 / sqrt 3 of that on both sides."""
    ways = script("finetunes")
    mean, half = ways.gain({"a": [0.5, 0.7, 0.9], "b": [0.4, 0.5, 0.6]}, "a", "b")
    assert mean == pytest.approx(0.2) and half == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert ways.shown(mean, half, sign=True) == "+20.0 ± 24.8"
    assert ways.shown(*ways.interval([0.5])) == "50.0"


def test_labels_curve_compares_the_same_examples(script: Any, tmp_path: Path) -> None:
    curve = script("labels_curve")
    parser = script("finetunes").task_parser("", "runs/x")
    for name, value in (
        ("labels", [100, 3200]), ("epochs", 3.0), ("least_steps", 150), ("task", "classification"), ("pooling", "mean"),
        ("rate", 1e-3), ("scratch_rate", 2e-3),
    ):  # fmt: skip
        parser.set_defaults(**{name: value})
    options = parser.parse_args(["model", "--data-root", str(tmp_path)])
    ways = curve.plan(options)
    assert list(ways) == ["pretrained-100", "scratch-100", "pretrained-3200", "scratch-3200"]
    assert [way["num_steps"] for way in ways.values()] == [150, 150, 300, 300]
    for labels in (100, 3200):
        one, other = ways[f"pretrained-{labels}"], ways[f"scratch-{labels}"]
        assert {**one, "from_scratch": True, "learning_rate": 2e-3} == other
        assert (one["from_scratch"], one["learning_rate"], one["pooling"]) == (False, 1e-3, "mean")


def test_ablation_changes_one_thing_at_a_time(script: Any, tmp_path: Path) -> None:
    ablation = script("gpt1_ablation")
    options = script("finetunes").task_parser("", "runs/x").parse_args(["model", "--data-root", str(tmp_path)])
    options.tasks, options.epochs, options.limit = ["pairs", "similarity"], 3.0, None
    options.start, options.scratch_rate, options.rate = None, None, None
    ways = ablation.plan(options)
    assert len(ways) == 6 and ways["similarity-full"]["heldout_sources"] == ["stsb_dev"]
    full = ways["pairs-full"]
    assert full["language_weight"] == 0.5 and full["epochs"] == 3.0
    assert ways["pairs-no_language"] == {**full, "language_weight": 0.0}
    assert ways["pairs-scratch"] == {**full, "from_scratch": True}
    assert list(ablation.used(["similarity"])) == ["stsb", "stsb_dev"]
    options.start, options.scratch_rate = tmp_path, 1e-3
    more = ablation.plan(options)
    assert len(more) == 8 and more["pairs-full"] == full
    assert more["pairs-scratch"] == {**full, "from_scratch": True, "learning_rate": 1e-3}
    assert more["pairs-start"] == {**full, "model": str(tmp_path), "learning_rate": 1e-3}
