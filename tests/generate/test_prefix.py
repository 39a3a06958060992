from __future__ import annotations

import random

import torch

from jielong.generate.prefix import PrefixCache

NUM_BYTES = 2 * 1 * 4 * 1 * 4  # of one block here: (2, 1, 4, 1) float32


class Store:
    """A prefix cache whose blocks hold the numbers of their tokens, and how often it asked for one."""

    def __init__(self, num_blocks: int) -> None:
        self.cache, self.num_read = PrefixCache(num_blocks * NUM_BYTES, block_tokens=4), 0

    def add(self, tokens: list[int], partition: str = "") -> None:
        def read(start: int, end: int) -> torch.Tensor:
            self.num_read += 1
            return torch.tensor(tokens[start:end], dtype=torch.float32).view(1, 1, -1, 1).expand(2, 1, 4, 1).clone()

        self.cache.add(partition, tokens, read)

    def find(self, tokens: list[int], partition: str = "", most: int | None = None) -> list[int]:
        blocks = self.cache.find(partition, tokens, len(tokens) if most is None else most)
        return [int(token) for block in blocks for token in block[0, 0, :, 0]]


def test_the_longest_beginning_in_whole_blocks() -> None:
    store = Store(10)
    store.add(list(range(11)))
    assert store.find(list(range(11))) == list(range(8))
    assert store.find(list(range(11)), most=7) == list(range(4))
    assert store.find([0, 1, 2, 3, 4, 5, 6, 99]) == [0, 1, 2, 3]
    assert store.find([1, 2, 3, 4]) == [] and store.find([]) == []
    store.add(list(range(12)))
    assert store.num_read == 3 and store.cache.num_blocks == 3  # what was there is not read again


def test_a_block_is_known_by_all_before_it() -> None:
    store = Store(10)
    store.add([1, 1, 1, 1, 5, 6, 7, 8])
    assert store.find([2, 2, 2, 2, 5, 6, 7, 8]) == []
    store.add([2, 2, 2, 2, 5, 6, 7, 8])
    assert store.cache.num_blocks == 4


def test_the_least_recently_used_goes_first_and_never_before_what_hangs_on_it() -> None:
    store = Store(4)
    first, second = [1] * 4 + [2] * 4, [3] * 4 + [4] * 4
    store.add(first)
    store.add(second)
    assert store.find(first) == first
    store.add([5] * 4)  # the end of `second` has to go, not its beginning
    assert store.find(second) == [3] * 4 and store.find(first) == first and store.find([5] * 4) == [5] * 4
    store.add([6] * 4 + [7] * 4 + [8] * 4 + [9] * 4 + [10] * 4)  # more than all: as much of its beginning as fits
    assert store.find([6] * 4 + [7] * 4 + [8] * 4 + [9] * 4 + [10] * 4) == [6] * 4 + [7] * 4 + [8] * 4 + [9] * 4
    assert store.cache.num_blocks == 4 and store.find(first) == []


def test_off_and_too_small() -> None:
    for num_bytes in (0, NUM_BYTES - 1):
        cache = PrefixCache(num_bytes, block_tokens=4)
        cache.add("", [1] * 8, lambda start, end: torch.zeros(2, 1, 4, 1))
        assert cache.num_blocks == cache.num_bytes == 0 and cache.find("", [1] * 8, 8) == []


def test_partitions_and_their_end() -> None:
    store = Store(2)
    store.add([1] * 4, "a")
    assert store.find([1] * 4, "b") == [] and store.find([1] * 4, "a") == [1] * 4
    store.add([1] * 4, "b")
    store.add([1] * 4 + [2] * 4, "c")
    assert store.find([1] * 4, "a") == [] and store.find([1] * 4, "b") == [] and list(store.cache._roots) == ["c"]
    store.cache.clear()
    assert store.find([1] * 4, "c") == [] and not store.cache._roots and store.cache.num_bytes == 0


def test_at_random() -> None:
    """Whatever comes and goes: bytes add up and stay in bounds, and what is found is what was asked for."""
    source = random.Random(0)
    store = Store(7)
    for _ in range(600):
        tokens = [source.randrange(2) for _ in range(4 * source.randrange(5))]
        partition = source.choice("ab")
        if source.random() < 0.5:
            store.add(tokens, partition)
        found = store.find(tokens, partition)
        assert found == tokens[: len(found)]
        cache = store.cache
        assert cache.num_bytes == cache.num_blocks * NUM_BYTES <= 7 * NUM_BYTES
        seen = list(cache._roots.values())
        for block in seen:
            seen += block.children.values()
        assert len(seen) - len(cache._roots) == cache.num_blocks  # all can be reached
        assert all(root.children for root in cache._roots.values())
        order = {block: place for place, block in enumerate(cache._by_use)}
        assert all(order[child] < order[block] for block in cache._by_use for child in block.children.values())
