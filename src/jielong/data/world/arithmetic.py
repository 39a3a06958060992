"""Two-digit sums and differences, worked digit by digit, because that is what a very small model can learn."""

from __future__ import annotations

import random

from jielong.data.world.exchange import Exchange, fraction

HELD_FRACTION = 0.2  # of the unordered operand pairs; a held pair stands in no document and in no conversation

_QUESTIONS = {
    "en": (
        "What is {sum}?",
        "How much is {sum}?",
        "Calculate {sum}.",
        "{sum} = ?",
        "Can you work out {sum}?",
        "Please compute {sum}.",
    ),
    "zh": ("{sum}等于多少？", "请计算{sum}。", "算一算：{sum}", "{sum}是多少？", "{sum}=?"),
}


def solve(a: int, b: int, sign: str, language: str = "en") -> str:
    """The worked line: ones first, then tens with the carry (or borrow), then the result."""
    ones, other_ones, tens, other_tens = a % 10, b % 10, a // 10, b // 10
    if sign == "+":
        low, carry, result = ones + other_ones, int(ones + other_ones > 9), a + b
    else:
        carry = int(ones < other_ones)
        ones += 10 * carry
        low, result = ones - other_ones, a - b
    high = tens + other_tens + carry if sign == "+" else tens - other_tens - carry
    first, second = f"{ones}{sign}{other_ones}={low}", f"{tens}{sign}{other_tens}{sign}{carry}={high}"
    if language == "zh":
        return f"{a}{sign}{b}：个位{first}，十位{second}，所以是{result}。"
    return f"{a}{sign}{b}: ones {first}, tens {second}, so {result}."


class Arithmetic:
    """Sums over operands 10..99. Pairs are split once, without regard to order or sign."""

    def __init__(self, seed: int) -> None:
        pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
        self.held = frozenset(p for p in pairs if fraction(seed, "sum", *p) < HELD_FRACTION)
        self.train = tuple(p for p in pairs if p not in self.held)
        self._sides = {"train": self.train, "heldout": tuple(sorted(self.held))}

    def _operands(self, rng: random.Random, split: str) -> tuple[int, int, str]:
        small, large = rng.choice(self._sides[split])
        if rng.random() < 0.5:
            return large, small, "-"
        return (small, large, "+") if rng.random() < 0.5 else (large, small, "+")

    def document(self, rng: random.Random) -> tuple[str, str]:
        """(text, language): a page of different worked sums, or a table of one-digit ones."""
        language = "zh" if rng.random() < 0.3 else "en"
        if rng.random() < 0.12:
            return self._table(rng), language
        lines = []
        for _ in range(rng.randint(6, 14)):
            a, b, sign = self._operands(rng, "train")
            lines.append(solve(a, b, sign, language))
        return "\n".join(lines), language

    @staticmethod
    def _table(rng: random.Random) -> str:
        lines = []
        for _ in range(rng.randint(20, 40)):
            a, b, carry = rng.randint(0, 9), rng.randint(0, 9), rng.randint(0, 1)
            if rng.random() < 0.5:
                lines.append(f"{a}+{b}+{carry}={a + b + carry}" if rng.random() < 0.5 else f"{a}+{b}={a + b}")
            else:
                a, b = max(a, b), min(a, b)
                a += carry if a == b else 0
                lines.append(f"{a}-{b}-{carry}={a - b - carry}" if a - b >= carry else f"{a + 10}-{b}={a + 10 - b}")
        return ", ".join(lines)

    def exchange(self, rng: random.Random, split: str) -> Exchange:
        language = "zh" if rng.random() < 0.35 else "en"
        a, b, sign = self._operands(rng, split)
        written = f"{a}{sign}{b}" if rng.random() < 0.5 else f"{a} {sign} {b}"
        result = a + b if sign == "+" else a - b
        question = rng.choice(_QUESTIONS[language]).format(sum=written)
        return Exchange(question, solve(a, b, sign, language), "final_number", (str(result),), language)
