"""How a benchmark is asked: the settings that its figures depend on."""

from __future__ import annotations

from dataclasses import dataclass

from jielong.errors import UsageError


@dataclass(frozen=True)
class Asking:
    """shots: worked examples before each question. limit: only so many items, evenly spaced. seed: of what is drawn.

    samples: written replies to each question; more than one wants a temperature above 0. max_new_tokens: of a reply;
    None for the task's own. chain_of_thought: worked examples show how the answer is come to.
    Raises UsageError for settings that cannot be.
    """

    shots: int = 0
    limit: int | None = None
    seed: int = 0
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None
    chain_of_thought: bool = True

    def __post_init__(self) -> None:
        for name, least in (("shots", 0), ("samples", 1)):
            if self.__dict__[name] < least:
                raise UsageError(f"{name} is {self.__dict__[name]}; it must be {least} or more")
        for name in ("limit", "max_new_tokens"):
            if self.__dict__[name] is not None and self.__dict__[name] < 1:
                raise UsageError(f"{name} is {self.__dict__[name]}; it must be 1 or more, or left out")
        if self.temperature < 0:
            raise UsageError(f"temperature is {self.temperature}; it must be 0 (the likeliest token) or more")
        if self.samples > 1 and self.temperature == 0:
            raise UsageError(
                f"{self.samples} samples at temperature 0 would all be the same; ask for one sample, or set a "
                "temperature, for example 0.7"
            )
