"""One measurement of trl_speed.py, in a process of its own: `trl_child.py SIDE TASK FOLDER DTYPE STEPS` prints JSON.

SIDE is ours or theirs; TASK ppo, sft or dpo. Both sides load the same weights from FOLDER and read the same ids from
its data.json. `theirs` needs trl on PYTHONPATH and imports nothing of ours; `ours` imports nothing of theirs.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

PROMPT_TOKENS, REPLY_TOKENS, ROLLOUT_ROWS, ROW_TOKENS, BATCH_ROWS = 32, 48, 32, 128, 8
RATE, BETA, WARM_STEPS = 1e-4, 0.1, 3
Outcome = dict[str, Any]


def ours_ppo(folder: Path, data: dict[str, Any], dtype: str, steps: int) -> Outcome:
    """Rollouts of 32 prompts, one epoch, one minibatch. seconds: of all iterations, the first one too."""
    from jielong.align.learner import build_learner
    from jielong.align.ppo import optimise
    from jielong.align.reward import RewardModel
    from jielong.align.settings import PPOConfig
    from jielong.folder import load
    from jielong.runtime import detect

    runtime = detect("cpu", dtype)
    policy, tokenizer = load(folder / "policy")
    config = PPOConfig(
        num_iterations=steps, rollout_rows=ROLLOUT_ROWS, minibatch_rows=ROLLOUT_ROWS, max_new_tokens=REPLY_TOKENS,
        learning_rate=RATE, critic_learning_rate=RATE, warmup_iterations=0,
    )  # fmt: skip
    learner = build_learner(policy, RewardModel.load(folder / "reward"), tokenizer, config)
    started = time.perf_counter()
    figures = [stats.figures for stats in optimise(learner, data["prompts"], config, runtime)]
    return {
        "seconds": time.perf_counter() - started,
        "units": steps * ROLLOUT_ROWS,
        "first_kl": figures[0]["kl_nats_per_reply"],
        "approx_kl": figures[0]["approx_kl"],
        "reply_tokens": statistics.fmean(each["reply_tokens"] for each in figures),
    }


def theirs_ppo(folder: Path, data: dict[str, Any], dtype: str, steps: int) -> Outcome:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy") for _ in range(2))
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1) for _ in range(2)
    )
    for model in (policy, reference, reward, critic):
        model.config.pad_token_id = tokenizer.pad_token_id
    arguments = PPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=ROLLOUT_ROWS, num_mini_batches=1, num_ppo_epochs=1,
        total_episodes=steps * ROLLOUT_ROWS, response_length=REPLY_TOKENS, stop_token="eos", temperature=1.0,
        local_rollout_forward_batch_size=ROLLOUT_ROWS, missing_eos_penalty=1.0, learning_rate=RATE,
        num_sample_generations=0, **_common(dtype),
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": data["prompts"]})
    trainer = PPOTrainer(
        args=arguments, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=critic, train_dataset=rows, eval_dataset=rows.select(range(ROLLOUT_ROWS)),
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    logged = [line for line in trainer.state.log_history if "objective/kl" in line]
    first = {"first_kl": logged[0]["objective/kl"], "approx_kl": logged[0]["policy/approxkl_avg"]} if logged else {}
    return {"seconds": seconds, "units": steps * ROLLOUT_ROWS, **first}


def _common(dtype: str) -> dict[str, Any]:
    """Their defaults turn bfloat16 and gradient checkpointing on; the second is off here, the first as asked."""
    return dict(
        bf16=dtype == "bfloat16", gradient_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1, lr_scheduler_type="constant", max_grad_norm=1.0, adam_epsilon=1e-5,
        dataloader_pin_memory=False,
    )  # fmt: skip


def _medians(seconds: list[float], units: int, losses: list[float]) -> Outcome:
    """From the seconds of single steps, the first ones left out."""
    kept = seconds[WARM_STEPS:]
    return {"seconds": statistics.median(kept), "units": units, "losses": losses[:3]}


def ours_sft(folder: Path, data: dict[str, Any], dtype: str, steps: int) -> Outcome:
    from jielong.data.batch import Batch
    from jielong.folder import load
    from jielong.runtime import detect
    from jielong.train.loop import FitConfig, fit
    from jielong.train.objectives import next_token
    from jielong.train.optim import OptimizerConfig, build_optimizer

    runtime, (model, _) = detect("cpu", dtype), load(folder / "policy")
    optimizer = build_optimizer(model, OptimizerConfig(RATE, weight_decay=0.0, beta2=0.999, eps=1e-5))

    def batches(step: int) -> list[Batch]:
        tokens = torch.tensor(data["rows"][step * BATCH_ROWS : (step + 1) * BATCH_ROWS])
        mask = torch.ones(tokens.shape, dtype=torch.bool)
        mask[:, 0] = False
        return [Batch(tokens, mask, torch.ones(tokens.shape, dtype=torch.int32), int(mask.sum()))]

    done = list(fit(model, optimizer, batches, next_token, lambda _: 1.0, runtime, FitConfig(steps)))
    return _medians([each.seconds for each in done], BATCH_ROWS * ROW_TOKENS, [each.loss for each in done])


def _timed_training(trainer: Any) -> tuple[list[float], list[float]]:
    """(seconds of each step, losses) of a trainer of theirs, by its own callbacks."""
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return [after - before for before, after in zip(marks, marks[1:], strict=False)], losses


def theirs_sft(folder: Path, data: dict[str, Any], dtype: str, steps: int) -> Outcome:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_dict({"input_ids": data["rows"][: steps * BATCH_ROWS]})
    arguments = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH_ROWS, max_steps=steps, learning_rate=RATE,
        max_length=ROW_TOKENS, packing=False, train_sampling_strategy="sequential", **_common(dtype),
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy"), args=arguments, train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )  # fmt: skip
    seconds, losses = _timed_training(trainer)
    return _medians(seconds, BATCH_ROWS * ROW_TOKENS, losses)


def ours_dpo(folder: Path, data: dict[str, Any], dtype: str, steps: int) -> Outcome:
    """The pass over the reference is spread over the steps: theirs makes one in each."""
    from jielong.align.comparisons import Candidates, collate
    from jielong.align.dpo import DPOConfig, dpo, with_reference
    from jielong.data.batch import PairBatch
    from jielong.folder import load
    from jielong.runtime import detect
    from jielong.train.loop import FitConfig, fit
    from jielong.train.optim import OptimizerConfig, build_optimizer

    runtime, (model, tokenizer) = detect("cpu", dtype), load(folder / "policy")
    items, end = [], tokenizer.eos_id
    assert end is not None
    for pair in data["pairs"][: steps * BATCH_ROWS]:
        replies = [[*tokenizer.encode(pair[name]), end] for name in ("chosen", "rejected")]
        prompt = tokenizer.encode(pair["prompt"])
        items.append(Candidates([[*prompt, *reply] for reply in replies], [len(reply) for reply in replies], [(0, 1)]))
    started = time.perf_counter()
    known = with_reference(model, items, tokenizer.pad_id, runtime)
    reference = (time.perf_counter() - started) / steps
    optimizer = build_optimizer(model, OptimizerConfig(RATE, weight_decay=0.0, beta2=0.999, eps=1e-5))

    def batches(step: int) -> list[PairBatch]:
        return [collate(known[step * BATCH_ROWS : (step + 1) * BATCH_ROWS], tokenizer.pad_id)]

    done = list(fit(model, optimizer, batches, dpo(DPOConfig(BETA)), lambda _: 1.0, runtime, FitConfig(steps)))
    seconds = [each.seconds + reference for each in done]
    tokens = statistics.fmean(each.num_tokens for each in done)
    return {**_medians(seconds, BATCH_ROWS, [each.loss for each in done]), "tokens_a_step": tokens}


def theirs_dpo(folder: Path, data: dict[str, Any], dtype: str, steps: int) -> Outcome:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH_ROWS, max_steps=steps, learning_rate=RATE,
        beta=BETA, train_sampling_strategy="sequential", **_common(dtype),
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy"), args=arguments,
        train_dataset=Dataset.from_list(data["pairs"][: steps * BATCH_ROWS]),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )  # fmt: skip
    seconds, losses = _timed_training(trainer)
    return _medians(seconds, BATCH_ROWS, losses)


TASKS = {
    ("ours", "ppo"): ours_ppo, ("ours", "sft"): ours_sft, ("ours", "dpo"): ours_dpo,
    ("theirs", "ppo"): theirs_ppo, ("theirs", "sft"): theirs_sft, ("theirs", "dpo"): theirs_dpo,
}  # fmt: skip


def main() -> None:
    side, task, folder, dtype, steps = sys.argv[1:]
    data = json.loads((Path(folder) / "data.json").read_text(encoding="utf-8"))
    outcome = TASKS[side, task](Path(folder), data, dtype, int(steps))
    outcome["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("\n" + json.dumps(outcome))


if __name__ == "__main__":
    main()
