"""The harness against lm-eval, item by item: the same model folder, the same files, prompts written by each on its own.

    python benchmarks/lm_eval_agreement.py --data-root ../shared/data --limit 250 [--model FOLDER]

Without --model a small Llama with random weights is built by transformers: an untrained model's likelihoods are as hard
to reproduce as a trained one's. lm-eval reads the same JSON lines from its own task files, written here in its own
template language after its published tasks; nothing is fetched. Its process gets --lm-eval FOLDER on its path, for
those who keep it apart (pip install --target FOLDER).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from table import machine, markdown_table

import jielong
from jielong import Engine, detect
from jielong.data.sources import Source, read_records
from jielong.evaluate.asking import Asking
from jielong.evaluate.harness import Result, evaluate_task
from jielong.evaluate.tasks import TASKS, spaced
from jielong.runtime import environment

_OPTIONS = {"output_type": "multiple_choice", "doc_to_target": "gold", "doc_to_choice": "choices"}
# lm-eval's tasks over the keys of our files. Not ours rendered: each side puts its own prompts together.
PEERS: dict[str, dict[str, Any]] = {
    "lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
    },
    "hellaswag": {  # WikiHow's marks taken out, as lm-eval's own task does it in Python
        "output_type": "multiple_choice",
        "doc_to_text": "{{ctx.strip() | replace(' [title]', '. ') | "
        "regex_replace('\\[.*?\\]', '') | replace('  ', ' ')}}",
        "doc_to_target": "label",
        "doc_to_choice": "{{endings | map('trim') | map('replace', ' [title]', '. ') | "
        "map('regex_replace', '\\[.*?\\]', '') | map('replace', '  ', ' ') | list}}",
    },
    "arc_easy": {**_OPTIONS, "doc_to_text": "{{query}}\nAnswer:"},
    "piqa": {**_OPTIONS, "doc_to_text": "{{query.strip()}}\nAnswer:"},
    "boolq": {**_OPTIONS, "doc_to_text": "{{query}}\nAnswer:"},  # passages longer than the context
    "winograd": {
        "output_type": "multiple_choice",
        "doc_to_text": "gold",
        "doc_to_target": "{{' '+continuation}}",
        "doc_to_choice": "context_options",
        "target_delimiter": "",
    },
    "blimp": {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[good, bad]}}",
        "target_delimiter": "",
    },
}  # fmt: skip


def build_model(folder: Path, texts: list[str], seed: int = 0) -> None:
    """A Llama of two layers, its weights so large that no two options are nearly equal, and a vocabulary for texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    spelling = Tokenizer(models.BPE())
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    spelling.train_from_iterator(texts, trainer)
    # as Llama has it: every text begins with <s>
    spelling.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=spelling, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=spelling.get_vocab_size(), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def write_peer_tasks(folder: Path, root: Path, names: Sequence[str], limit: int) -> None:
    """For each task the same rows as they are, and lm-eval's task file over them (JSON is YAML)."""
    for name in names:
        found = list(read_records(Source(name, TASKS[name].path), root))
        rows = [json.dumps(found[number], ensure_ascii=False) for number in spaced(len(found), limit)]
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(rows) + "\n", encoding="utf-8")
        figures = [
            "acc",
            *(["perplexity"] if name == "lambada" else []),
            *(["acc_bytes"] if TASKS[name].normalised else []),
        ]
        task = {
            "task": f"peer_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metric_list": [
                {"metric": figure, "aggregation": "perplexity" if figure == "perplexity" else "mean"}
                for figure in figures
            ],
            **PEERS[name],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")


def ask_peer(model: Path, tasks: Path, names: Sequence[str], lm_eval: Path | None) -> dict[str, Any]:
    """What lm-eval says, from a process of its own: task -> {"results", "samples": one an item in order}."""
    with tempfile.TemporaryDirectory() as cache:
        out = Path(cache) / "said.json"
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": cache, "TOKENIZERS_PARALLELISM": "0"}
        path = os.pathsep.join(filter(None, (str(lm_eval) if lm_eval else "", os.environ.get("PYTHONPATH", ""))))
        spec = json.dumps({"model": str(model), "tasks": str(tasks), "names": list(names), "out": str(out)})
        command, environ = [sys.executable, __file__, "--peer", spec], {**os.environ, **offline, "PYTHONPATH": path}
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"lm-eval failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def run_peer(spec: dict[str, Any]) -> None:
    """In the process of lm-eval: evaluate and write down every item."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    said = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": spec["model"], "dtype": "float32"},
        tasks=[f"peer_{name}" for name in spec["names"]],
        task_manager=TaskManager(include_path=spec["tasks"], include_defaults=False),
        batch_size=16,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    found = {}
    for name in spec["names"]:
        samples = sorted(said["samples"][f"peer_{name}"], key=lambda sample: sample["doc_id"])
        kept = ("filtered_resps", "acc", "acc_bytes")
        found[name] = {
            "results": {key: value for key, value in said["results"][f"peer_{name}"].items() if "," in key},
            "samples": [{key: sample[key] for key in kept if key in sample} for sample in samples],
        }
    found["version"] = lm_eval.__version__
    Path(spec["out"]).write_text(json.dumps(found), encoding="utf-8")


def compare(result: Result, samples: list[dict[str, Any]]) -> dict[str, float]:
    """{"items", "agreement" in what is right, "agreement_norm", "largest_gap_nats" of any log-probability}."""
    assert len(samples) == len(result.rows), (len(samples), len(result.rows))
    normalised = TASKS[result.name].normalised
    same, same_norm, gap = 0, 0, 0.0
    for row, sample in zip(result.rows, samples, strict=True):
        theirs = sample["filtered_resps"]
        theirs = [theirs] if not isinstance(theirs[0], list) else theirs
        gap = max(gap, *(abs(a - float(b[0])) for a, b in zip(row["logprobs_nats"], theirs, strict=True)))
        same += row["right"] == bool(sample["acc"])
        same_norm += normalised and row["right_norm"] == bool(sample["acc_bytes"])
    num = len(samples)
    return {
        "items": num,
        "agreement": same / num,
        "agreement_norm": same_norm / num if normalised else float("nan"),
        "largest_gap_nats": gap,
    }


def measure(model: Path, root: Path, names: Sequence[str], limit: int, lm_eval: Path | None) -> list[list[str]]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as tasks:
        write_peer_tasks(Path(tasks), root, names, limit)
        said = ask_peer(model, Path(tasks), names, lm_eval)
    engine = Engine(*jielong.load(model), detect("cpu", "float32"))
    rows = []
    for name in names:
        result = evaluate_task(engine, name, root, Asking(limit=limit))
        found = compare(result, said[name]["samples"])
        theirs = said[name]["results"]["acc,none"]
        norm = "–" if found["agreement_norm"] != found["agreement_norm"] else f"{100 * found['agreement_norm']:.2f} %"
        rows.append(
            [name, f"{found['items']:.0f}", f"{100 * result.figures['acc'].value:.2f} %", f"{100 * theirs:.2f} %",
             f"{100 * found['agreement']:.2f} %", norm, f"{found['largest_gap_nats']:.1e}", str(result.num_cut)]
        )  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data-root", type=Path, help="the folder with zero_shot/ and blimp/")
    parser.add_argument("--model", type=Path, help="a model folder; a random Llama when left out")
    parser.add_argument("--tasks", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--limit", type=int, default=250, help="items a task")
    parser.add_argument("--lm-eval", type=Path, help="a folder with lm-eval and what it needs, put on its path")
    parser.add_argument("--peer", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peer is not None:
        run_peer(options.peer)
        return 0
    if options.data_root is None:
        parser.error("--data-root is needed")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder)
        if options.model is None:
            texts = [
                json.dumps(row, ensure_ascii=False)
                for row in read_records(Source("", TASKS["piqa"].path), options.data_root)
            ]
            build_model(model, texts)
        rows = measure(model, options.data_root, options.tasks, options.limit, options.lm_eval)
    header = ["task", "items", "acc", "lm-eval's", "same items", "same, by byte", "largest gap, nats", "cut"]
    print(markdown_table(header, rows))
    print(machine(environment(detect("cpu", "float32"))))
    agree = all(float(row[4].split()[0]) >= 99.9 for row in rows)
    print("agreement of at least 99.9 % on every task" if agree else "AGREEMENT BELOW 99.9 %")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
