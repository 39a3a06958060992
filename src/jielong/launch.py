"""What must be settled before torch is imported: the settings of the allocator and of OpenMP.

Both are read once, when a process starts, so a command that wants them starts itself again. This module imports no
torch, or that would be loaded twice. It reads the environment, as `config` and `runtime` do, and no other module may.
"""

from __future__ import annotations

import os
import platform
import sys

# glibc gives blocks above 32 MiB back to the kernel at every free, so each training step pays page faults for all of
# its activations. These settings keep the pages, on huge ones where the kernel has them.
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # How long an idle OpenMP thread spins for work. By default that is milliseconds, and when another program wants the
    # core, each operation waits for the scheduler: on a busy machine a training step took 10 times as long.
    "GOMP_SPINCOUNT": "2000",
}


def allocator_is_tuned() -> bool:
    """Whether this process runs with all of ALLOCATOR_SETTINGS."""
    return all(os.environ.get(key) == value for key, value in ALLOCATOR_SETTINGS.items())


def relaunch_with_allocator() -> None:
    """Start this very command again, once, with settings that keep memory between steps and share cores with others.

    glibc and OpenMP read them before main(), so setting them in a running process does nothing. Only on Linux with
    glibc; the environment variable JIELONG_ALLOCATOR=0 turns it off. Settings that the user made are kept. Call it
    before torch is imported: what was loaded by then is loaded again.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or os.environ.get("JIELONG_ALLOCATOR") == "0":
        return
    if os.environ.get("JIELONG_ALLOCATOR") == "set" or all(key in os.environ for key in ALLOCATOR_SETTINGS):
        return
    settings = {**ALLOCATOR_SETTINGS, **os.environ, "JIELONG_ALLOCATOR": "set"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, settings)


def child_variables(tuned: bool) -> dict[str, str]:
    """This process's environment for a child: with ALLOCATOR_SETTINGS, or as it would be without them."""
    given = {key: value for key, value in os.environ.items() if key not in (*ALLOCATOR_SETTINGS, "JIELONG_ALLOCATOR")}
    return {**given, **ALLOCATOR_SETTINGS, "JIELONG_ALLOCATOR": "set"} if tuned else given
