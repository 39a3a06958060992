"""A shuffled order of any length that is computed, place by place, and never stored.

A billion rows shuffled as a list would take 8 GB in every process, and minutes before the first step. Here the row at a
place is a function of the length, the seed and the place.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from jielong.runtime import derive_seed

Ints = NDArray[np.int64]

NUM_ROUNDS = 6


class Permutation:
    """A permutation of 0 ... size - 1, drawn by a seed. Equal size and seed, equal permutation, on every machine.

    A Feistel network over pairs: number x is (x // b, x mod b) with a · b just above size; in turns each half is moved
    on, modulo its own range, by a hash of the other half. That is a permutation of 0 ... a · b - 1, whatever the hash
    does. A place that lands beyond size is moved on again until it lands inside, which keeps it a permutation; since
    a · b < size + a, about one in √size does.
    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 (cycle-walking) and 3
    (generalised Feistel). Differs: six rounds, and a hash that is good for shuffling but no secret: splitmix64's last
    step (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 16).
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, must be at least 1")
        self._size = size
        self._num_left = math.isqrt(size - 1) + 1  # the root of size, rounded up
        self._num_right = -(-size // self._num_left)
        self._keys = [np.uint64(derive_seed(seed, "round", number)) for number in range(NUM_ROUNDS)]

    def __len__(self) -> int:
        return self._size

    def at(self, places: Ints) -> Ints:
        """The numbers that stand at these places, (n,) int64 each. Places lie in 0 ... size - 1."""
        numbers = self._move(places.astype(np.uint64))
        beyond = np.flatnonzero(numbers >= self._size)
        while len(beyond):
            numbers[beyond] = self._move(numbers[beyond])
            beyond = beyond[numbers[beyond] >= self._size]
        return numbers.astype(np.int64)

    def _move(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        num_left, num_right = np.uint64(self._num_left), np.uint64(self._num_right)
        left, right = numbers // num_right, numbers % num_right
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                left = (left + _hash(right, key) % num_left) % num_left
            else:
                right = (right + _hash(left, key) % num_right) % num_right
        return left * num_right + right


def _hash(numbers: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """64 bits that look random, of each number under a key; arithmetic is modulo 2^64."""
    mixed = numbers + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
