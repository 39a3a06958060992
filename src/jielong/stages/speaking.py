"""What a model says while it is trained: the same few prompts, each time it is evaluated.

    spoken.jsonl    {"step": 500, "samples": [{"prompt": ..., "text": ...}, ...]}, a line a time

A run that was stopped writes the lines behind its last checkpoint again; the last line of a step counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jielong.generate.engine import Engine
from jielong.log import MetricsLog
from jielong.model.transformer import Transformer
from jielong.stages.context import Context
from jielong.tokenizer import Tokenizer

SPOKEN = "spoken.jsonl"
MOST_PROMPTS, MOST_TOKENS = 6, 32


def speaking(
    context: Context, model: Transformer, tokenizer: Tokenizer, prompts: Sequence[tuple[str, list[int]]]
) -> Callable[[int], None]:
    """step -> None: adds what the model says now, greedily, to the first of the prompts (as shown, as ids) that fit.

    Says nothing in processes whose files nobody keeps, nor where no process has a whole model, or a compiled one.
    """
    limit = model.config.max_length - MOST_TOKENS
    asked = [(shown, ids) for shown, ids in prompts if 0 < len(ids) <= limit][:MOST_PROMPTS]
    run = context.recipe.run
    if not (asked and context.leads and context.runtime.mesh is None and not run.compile):
        return lambda step: None
    log = MetricsLog(context.folder / SPOKEN)

    def speak(step: int) -> None:
        model.eval()
        engine = Engine(model, tokenizer, context.runtime)
        made = engine.generate([ids for _, ids in asked], max_new_tokens=MOST_TOKENS, temperature=0.0)
        samples = [{"prompt": shown, "text": one.text} for (shown, _), one in zip(asked, made, strict=True)]
        log.write(step, samples=samples)

    return speak
