"""`jielong ARGUMENTS` in a process of its own that meets with trouble at a chosen point. The fixture `trouble` runs it.

The point is a step, not a time, so that a test does the same on a slow machine; what then happens is the real thing:
SIGKILL, SIGINT, or a limit on the size of files that makes the next large write fail as on a full disk.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import jielong.tensors
from jielong.cli import main
from jielong.log import MetricsLog

ORDER: dict[str, Any] = globals().get("ORDER", {})  # put there by runpy: arguments, stage, step, moment, errors
ROOM_BYTES = {"full_disk": 60_000, "no_room": 3_000}  # none for weights; none for more lines of metrics either

write_line = MetricsLog.write
save_file = jielong.tensors.save_file


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_stage(path: Path) -> bool:
    return any(part[3:] == ORDER["stage"] for part in path.parts)


def write(log: MetricsLog, step: int, **values: Any) -> None:
    """MetricsLog.write, with trouble after (or in the midst of) the line of the chosen step."""
    if not is_stage(log.path) or step != ORDER["step"]:
        return write_line(log, step, **values)
    if ORDER["moment"] == "half_line":
        with log.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "loss_nats": 1.0})[:14])
        die()
    write_line(log, step, **values)
    if ORDER["moment"] == "after_step":
        die()
    elif ORDER["moment"] == "interrupt":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell leaves it ignored
        signal.raise_signal(signal.SIGINT)
    elif ORDER["moment"] in ROOM_BYTES:
        room = ROOM_BYTES[ORDER["moment"]]
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def save_half(tensors: Any, path: Any, metadata: dict[str, str] | None = None) -> None:
    """save_file, cut off: in the second file of the chosen step's checkpoint, or in the stage's model.safetensors."""
    path = Path(path)
    save_file(tensors, path, metadata=metadata)
    in_checkpoint = path.parent.name.endswith(f"step-{ORDER['step']:06d}") and ".optimizer." in path.name
    wanted = in_checkpoint if ORDER["moment"] == "half_checkpoint" else path.parent.name == "model"
    if is_stage(path) and wanted:
        os.truncate(path, path.stat().st_size // 2)
        die()


if __name__ == "__main__":
    errors = os.open(ORDER["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    os.environ["JIELONG_ALLOCATOR"] = "0"  # this process is to be killed, not one that it became
    sys.argv = ["jielong", *ORDER["arguments"]]
    patch = pytest.MonkeyPatch()
    patch.setattr(MetricsLog, "write", write)
    if ORDER["moment"] in ("half_checkpoint", "half_model"):
        patch.setattr(jielong.tensors, "save_file", save_half)
    main()
