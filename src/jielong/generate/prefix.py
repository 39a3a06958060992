"""Keys and values of beginnings that were read before: a tree of blocks, so that a conversation is read once.

A block holds so many tokens in a row, and is known by its tokens and all before it: they are compared themselves, not
a hash of them, so that no prompt can be taken for another. Rows get copies. A block may therefore go at any time, and
nothing that runs can change one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

BLOCK_TOKENS = 8


@dataclass(eq=False)
class _Block:
    """parent: None in a partition's root. key: its tokens. content: (2 L, K, block, H), None in a root."""

    partition: str
    parent: _Block | None
    key: tuple[int, ...]
    content: Tensor | None
    children: dict[tuple[int, ...], _Block] = field(default_factory=dict)


class PrefixCache:
    """Blocks of up to max_bytes (of keys and values), the least recently used dropped first; 0 turns it off.

    Partitions never share: what one has read, another cannot find, not even by the time it takes.
    """

    def __init__(self, max_bytes: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self.max_bytes, self.block_tokens = max_bytes, block_tokens
        self.num_bytes = 0
        self._roots: dict[str, _Block] = {}
        # Least recently used first. A block is always touched after those behind it, so the first has none behind it.
        self._by_use: OrderedDict[_Block, None] = OrderedDict()

    @property
    def num_blocks(self) -> int:
        return len(self._by_use)

    def find(self, partition: str, tokens: Sequence[int], most: int) -> list[Tensor]:
        """The blocks that hold the beginning of `tokens`, in order, of at most `most` tokens together."""
        path = self._walk(partition, tokens[:most])
        self._touch(path)
        return [block.content for block in path if block.content is not None]

    def add(self, partition: str, tokens: Sequence[int], read: Callable[[int, int], Tensor]) -> None:
        """Keep the whole blocks of `tokens`. read(start, end): a copy of their keys and values, for what is new."""
        if not self.max_bytes:
            return
        path = self._walk(partition, tokens)
        self._touch(path)
        kept = set(path)
        root = self._roots.get(partition) or _Block(partition, None, (), None)
        parent = path[-1] if path else root
        size = self.block_tokens
        for start in range(len(path) * size, len(tokens) - size + 1, size):
            content = read(start, start + size)
            if not self._make_room(content.nbytes, kept):
                break
            block = _Block(partition, parent, tuple(tokens[start : start + size]), content)
            parent.children[block.key] = block
            self._by_use[block] = None
            self.num_bytes += content.nbytes
            path.append(block)
            kept.add(block)
            parent = block
        self._touch(path)
        if root.children:  # its last one may have been dropped on the way, and the root with it
            self._roots[partition] = root

    def clear(self) -> None:
        """Forget all, as after a change of the weights."""
        self._roots.clear()
        self._by_use.clear()
        self.num_bytes = 0

    def _walk(self, partition: str, tokens: Sequence[int]) -> list[_Block]:
        path: list[_Block] = []
        block, size = self._roots.get(partition), self.block_tokens
        for start in range(0, len(tokens) - size + 1, size):
            block = block.children.get(tuple(tokens[start : start + size])) if block is not None else None
            if block is None:
                break
            path.append(block)
        return path

    def _touch(self, path: Sequence[_Block]) -> None:
        for block in reversed(path):
            self._by_use.move_to_end(block)

    def _make_room(self, num_bytes: int, kept: set[_Block]) -> bool:
        """Whether num_bytes more fit, others than `kept` having been dropped for them."""
        while self.num_bytes + num_bytes > self.max_bytes:
            oldest = next(iter(self._by_use), None)
            if oldest is None or oldest in kept:
                return False
            self._drop(oldest)
        return True

    def _drop(self, block: _Block) -> None:
        assert block.parent is not None and block.content is not None and not block.children
        del self._by_use[block], block.parent.children[block.key]
        self.num_bytes -= block.content.nbytes
        if block.parent.parent is None and not block.parent.children:
            self._roots.pop(block.partition, None)
