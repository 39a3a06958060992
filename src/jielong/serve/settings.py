"""How a server is set up: where it listens, who may ask, and how much anybody may ask for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from jielong.errors import UsageError
from jielong.serve.personas import Persona

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SHORTEST_KEY, LONGEST_KEY = 8, 512


@dataclass(frozen=True)
class Limits:
    """Bounds that hold before the engine sees a request; those of single numbers are in `schema`.

    sequences: prompts times n of one request. queue: sequences that may wait beside those that run; more is 429.
    connections: requests in work at once. body_seconds: a body must be here within that. header_seconds: the same for
    a request's head.
    """

    body_bytes: int = 2 << 20
    header_bytes: int = 32 << 10
    sequences: int = 128
    queue: int = 256
    connections: int = 1024
    body_seconds: float = 30.0
    header_seconds: float = 30.0


@dataclass(frozen=True)
class ServeSettings:
    """host, port: where to listen; port 0 takes a free one. api_keys: who knows one may ask; () is everybody.

    allowed_hosts: names, beside addresses and localhost, that a Host header may hold. allowed_origins: web pages of
    other origins that may ask ("https://example.org"). persona: the role that is served, None for none. log_prompts:
    write what was asked and answered into the log. drain_seconds: how long a stopping server waits for its requests.
    Raises UsageError for a public address without a key, unless insecure says that this is meant.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    persona: Persona | None = None
    log_prompts: bool = False
    drain_seconds: float = 30.0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port is {self.port}; legal are 0 (any free one) to 65535")
        for number, key in enumerate(self.api_keys):
            if not (SHORTEST_KEY <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key):
                raise UsageError(
                    f"API key {number} is not legal: a key has {SHORTEST_KEY} to {LONGEST_KEY} visible ASCII characters"
                )
        for origin in self.allowed_origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise UsageError(
                    f"allowed origin {origin!r}: must read http://host or https://host:port, without a path"
                )
        if not self.is_loopback and not self.api_keys and not self.insecure:
            raise UsageError(
                f"host {self.host!r} can be reached by others, and no --api-key is set: anybody could use the model. "
                "Give --api-key KEY (or --api-key-file FILE); --insecure serves everybody all the same"
            )

    @property
    def is_loopback(self) -> bool:
        """True where only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False  # a name: it may lead anywhere


def read_keys(path: Path) -> tuple[str, ...]:
    """API keys of a file, one a line. Raises UsageError when there is no such file or no key in it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a list of API keys: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{path}: holds no API key; write one a line")
    return keys
