"""What a process that is a server does beside loading a model."""

from __future__ import annotations

import gc
from pathlib import Path

from jielong.folder import save
from jielong.serve.launch import EngineOptions, load_folder, load_for
from jielong.serve.settings import ServeSettings

from .conftest import Lab


def test_the_collector_leaves_out_what_stays(lab: Lab, tmp_path: Path) -> None:
    """A pass through all of torch's objects would stop every stream; what comes later is still looked through."""
    save(lab.model, lab.tokenizer, tmp_path / "tiny")
    options = EngineOptions(max_rows=2, cache_bytes=0, prefill_tokens=16, weights="float32")
    gc.unfreeze()
    try:
        served, later = load_for(ServeSettings(), tmp_path / "tiny", options), load_folder(tmp_path / "tiny", options)
        seen = {id(one) for one in gc.get_objects()}
        assert id(later.batcher.model) in seen
        assert id(served.batcher.model) not in seen and gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
