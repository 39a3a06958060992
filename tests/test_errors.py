from __future__ import annotations

import pytest

from jielong import errors
from jielong.errors import nearest


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("JielongError", 1), ("UsageError", 2), ("RecipeError", 2), ("DataError", 1), ("ModelError", 1),
        ("CheckpointError", 1), ("TrainingError", 1),
    ],
)  # fmt: skip
def test_exit_codes(name: str, exit_code: int) -> None:
    error = vars(errors)[name]("what went wrong")
    assert isinstance(error, errors.JielongError)
    assert error.exit_code == exit_code and str(error) == "what went wrong"


def test_nearest() -> None:
    assert nearest("learning_rat", ["learning_rate", "warmup_steps"]) == "learning_rate"
    assert nearest("zzz", ["learning_rate", "warmup_steps"]) is None
    assert nearest("anything", []) is None
