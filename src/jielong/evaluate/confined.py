"""The prison: run as a script of its own, it gives up everything that a program need not have, then becomes it.

    python -I -S -B confined.py PROGRAM.py MEMORY_BYTES SECONDS

Given up everywhere: other processes and threads, memory beyond a limit, processor time, large files, the environment.
On Linux as well, as far as the kernel goes along: the network, signals to others, root's powers, and writing to any
file at all. Standard library only, for it runs outside of this package. What could be shut is told on the first line of
stdout as JSON, before the program begins.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys

_NEW_USER, _NEW_NET, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_NOBODY = 65534
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # the same numbers on every architecture
# Of what Landlock can forbid since its first version: writing, removing and making anything, but not reading.
_LANDLOCK_WRITES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
_FILE_BYTES, _NUM_FILES = 1 << 20, 64
# machine -> (the kernel's number for it, calls that are refused): fork vfork clone clone3 (processes, threads), kill
# tkill tgkill pidfd_send_signal ptrace process_vm_writev (other processes), socket io_uring_setup (the network).
_REFUSED = {
    "x86_64": (0xC000003E, (57, 58, 56, 435, 62, 200, 234, 424, 101, 311, 41, 425)),
    "aarch64": (0xC00000B7, (220, 435, 129, 130, 131, 424, 117, 271, 198, 425)),
}


def main(program: str, memory_bytes: int, seconds: int) -> None:
    """Confine this process and become `program`. Leaves with 97 where processes cannot be forbidden."""
    linux = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
    shut = {"network": False, "powers": os.geteuid() != 0, "writes": False}
    if linux is not None:
        # with a user namespace root leaves its powers behind, and everybody may have a network of their own
        shut["network"] = linux.unshare(_NEW_USER | _NEW_NET | _NEW_IPC) == 0
        linux.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        shut["writes"] = _forbid_writes(linux)
        shut["powers"] = shut["powers"] or shut["network"] or (not shut["writes"] and _become_nobody())
    _set_limits(memory_bytes, seconds)
    if linux is not None and _refuse_calls(linux):
        shut["network"] = True
    shut["processes"] = _cannot_fork()
    sys.stdout.write(json.dumps(shut) + "\n")
    sys.stdout.flush()
    if not shut["processes"]:
        sys.exit(97)
    # an empty environment: no keys, no proxies
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", program], {"PATH": "/usr/bin:/bin"})


def _set_limits(memory_bytes: int, seconds: int) -> None:
    """For good. Not every system limits memory; the others are everywhere. Root is above the limit on processes."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_NOFILE: _NUM_FILES,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, value in limits.items():
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            if kind != resource.RLIMIT_AS:
                raise


def _become_nobody() -> bool:
    """Whether this process is not root any more: the last resort, for nobody may not even read the interpreter."""
    try:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    except OSError:
        return False
    return True


def _forbid_writes(linux: ctypes.CDLL) -> bool:
    """Whether the kernel now refuses this process to open files for writing, to make any and to remove any."""
    handled = ctypes.c_uint64(_LANDLOCK_WRITES)
    rules = linux.syscall(_LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint32(0))
    return rules >= 0 and linux.syscall(_LANDLOCK_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0)) == 0


def _refuse_calls(linux: ctypes.CDLL) -> bool:
    """Whether the kernel now answers EPERM to the calls of _REFUSED, and to those of other machines' numbering.

    A program in the kernel's filter language, 8 bytes an instruction: code, how far to jump if so and if not, operand.
    """
    if platform.machine() not in _REFUSED:
        return False
    machine, calls = _REFUSED[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    last = len(calls) + 5  # where the refusal stands; before it, the permission
    lines = [(load, 0, 0, 4), (equal, 0, last - 2, machine), (load, 0, 0, 0), (at_least, last - 4, 0, 0x40000000)]
    lines += [(equal, last - 1 - (4 + index), 0, call) for index, call in enumerate(calls)]
    lines += [(answer, 0, 0, 0x7FFF0000), (answer, 0, 0, 0x00050001)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    return linux.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.create_string_buffer(program), 0, 0) == 0


def _cannot_fork() -> bool:
    """Tried, not believed."""
    try:
        child = os.fork()
    except OSError:
        return True
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return False


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
