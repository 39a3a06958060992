"""A step of decoding recorded once and replayed: one call to the device in place of the hundreds a step is made of.

A GPU computes a step sooner than Python can ask for it, unless the model is large. A CUDA graph is all that was asked
for in one step; to replay it is one call. It is a recording, so the next step must be the same: of the same shapes, at
the same addresses, and decided by nothing that the host looks at. `cache.FixedCache` and `rows` see to that, and the
tests replay such steps on a CPU, where nothing is gained by it. What records on a GPU, `cuda_graph`, has never run: no
GPU was at hand.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.model.moe import Experts
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime

Step = Callable[[], Tensor]  # reads what lies at its addresses; the logits, which the next replay may overwrite
Record = Callable[[Step, Step | None], Step]  # a step, and a recording beside which it is replayed -> what replays it
PLAIN_STEPS = 4  # of a shape run as they are written before one is recorded, which takes about as long
KEYS_A_RECORDING = 128  # more would be looked at in vain, fewer recorded too often
# Of all threads of this process: torch allows one recording at a time, and what another thread did meanwhile on the
# stream that is recorded would become part of it. A server of two models has a thread for each.
_ONE_AT_A_TIME = threading.Lock()


def num_recorded_keys(num_keys: int) -> int:
    """How many keys a recorded step sees, of which num_keys are held: those behind them are hidden."""
    return -(-num_keys // KEYS_A_RECORDING) * KEYS_A_RECORDING


def as_written(step: Step, beside: Step | None = None) -> Step:
    """No recording: the step itself."""
    return step


@functools.cache
def _stream_aside(device: torch.device) -> torch.cuda.Stream:
    """The stream to record on: one for all recordings, for cuBLAS keeps memory for each stream it has seen."""
    return torch.cuda.Stream(device)


@dataclass(frozen=True)
class _Graph:
    """A recorded step: to call it is to replay it."""

    graph: torch.cuda.CUDAGraph
    logits: Tensor

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.logits


def cuda_graph(device: torch.device, step: Step, beside: Step | None = None) -> Step:
    """The step as a CUDA graph. To call it when it is recorded must do no harm: it is called once before.

    beside: another recording, which is over, its logits read, whenever this one is replayed. The two then work in the
    same memory: a step may take as much as the widest of the weights that it casts to bfloat16.
    """
    aside, pool = _stream_aside(device), beside.graph.pool() if isinstance(beside, _Graph) else None
    # The stream of before is named, because torch leaves the other one current when a recording fails.
    with _ONE_AT_A_TIME, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream()):
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what libraries prepare at their first call does not belong into a recording
            step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads, a loader's or NCCL's, may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            logits = step()
    return _Graph(graph, logits)


class Recorder:
    """Records steps with `record` until that fails; from then on steps stay as they are written, which is told once."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __call__(self, step: Step, beside: Step | None = None) -> Step:
        try:
            return self._record(step, beside)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(
                f"decoding goes on without CUDA graphs, for a step could not be recorded ({reason}); "
                "JIELONG_CUDA_GRAPHS=0 leaves them out from the start",
                stacklevel=2,
            )
            self._record = as_written
            return step


def choose_recorder(model: Transformer, runtime: Runtime) -> Recorder | None:
    """The recorder for steps of this model in this place, None where they are not recorded.

    Not those of experts, for the host asks how many tokens each of them has; nor of weights that are shared out, which
    streams of their own gather.
    """
    if runtime.device.type != "cuda" or not runtime.cuda_graphs or runtime.mesh is not None:
        return None
    if any(isinstance(module, Experts) for module in model.modules()):
        return None
    return Recorder(functools.partial(cuda_graph, runtime.device))


@dataclass
class _Held:
    """What is known of steps of one shape: how many ran as written, and the recording with the tensors it reads."""

    num_plain: int = 0
    inputs: tuple[Tensor, ...] = ()
    replay: Step | None = None


class Recordings:
    """Recorded steps by their shapes, `most` of them, the oldest dropped first. They work in the same memory."""

    def __init__(self, recorder: Recorder, most: int = 1) -> None:
        self._recorder, self._most = recorder, most
        self._edition = 0
        self._held: dict[tuple[int, ...], _Held] = {}

    def run(self, edition: int, shape: tuple[int, ...], step: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """step(*inputs), which the next call may overwrite; recorded, if there were others of this shape before.

        Equal shapes of an edition mean the same step over tensors at the same addresses, but for the inputs, which are
        copied. Another edition means other addresses: what was recorded over the old ones is dropped.
        """
        if edition != self._edition:
            self._held.clear()
            self._edition = edition
        held = self._held.get(shape)
        if held is None:
            while len(self._held) >= self._most:
                del self._held[next(iter(self._held))]
            held = self._held[shape] = _Held()
        if held.num_plain < PLAIN_STEPS:
            held.num_plain += 1
            return step(*inputs)
        if held.replay is None:
            held.inputs = tuple(one.clone() for one in inputs)
            beside = next((one.replay for one in self._held.values() if one.replay is not None), None)
            held.replay = self._recorder(functools.partial(step, *held.inputs), beside)
        else:
            for own, given in zip(held.inputs, inputs, strict=True):
                own.copy_(given)
        return held.replay()
