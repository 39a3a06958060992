"""What beam search writes with: of the structure lab's models it must write what they say without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jielong.generate.beam import BeamConfig, beam_search
from jielong.generate.decoders import begin_decoding
from jielong.model.config import ModelConfig
from jielong.model.structure import DECODER_ONLY, ENCODER_DECODER, Structure, StructuredTransformer
from jielong.runtime import Runtime

CONFIG = ModelConfig(
    vocab_size=7, max_length=40, width=32, encoder_layers=2, decoder_layers=2, num_heads=4, num_kv_heads=4,
    head_size=8, ffn_width=48, init_std=0.3,
)  # fmt: skip
FIRST, END, LIMIT = 1, 2, 12


@pytest.mark.parametrize("structure", [ENCODER_DECODER, replace(DECODER_ONLY, causal_source=False), DECODER_ONLY])
def test_structures_write_greedily_what_they_say(structure: Structure) -> None:
    model = StructuredTransformer(CONFIG, structure)
    model.init_weights(torch.Generator().manual_seed(4))
    model.eval()
    source = torch.randint(3, 7, (5, 7), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(7) < torch.tensor([7, 4, 5, 1, 6])[:, None]).int()
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.float32)
    decoder = begin_decoding(model, source, segments, 1, LIMIT, runtime)
    found = beam_search(decoder, FIRST, [END], [LIMIT] * 5, BeamConfig(1))
    written = [[token for token in best[0].tokens if token != END] for best in found]
    assert written == model.greedy(source, segments, FIRST, END, LIMIT)
    assert len({len(row) for row in written}) > 1, "sentences that end at different times"
