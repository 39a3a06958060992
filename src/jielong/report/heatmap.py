"""Maps of weights as SVG: one small PNG a map, one colour whose opacity is the weight, so light and dark work alike."""

from __future__ import annotations

import base64
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLOR = (70, 120, 235)  # stands out on white and on near-black
SMALLEST_CELL, LARGEST_CELL, MAP_PIXELS = 13, 34, 520
LONGEST_LABEL = 16
TOLD_WEIGHT = 0.05  # from here on a cell of the large map says its weight when pointed at


def shown(token: str) -> str:
    """A token as a label: blanks and line ends visible, other control characters replaced, cut to LONGEST_LABEL."""
    visible = token.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    visible = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c)[0] == "C" else c for c in visible)
    return visible if len(visible) <= LONGEST_LABEL else visible[: LONGEST_LABEL - 1] + "…"


def columns(text: str) -> int:
    """How wide a text is in half-width characters: 汉字 take two each."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def picture(weights: Tensor) -> str:
    """Weights (T, S) in 0..1 as a PNG in a data: address. Opacity is the square root, or small weights would vanish."""
    levels = (weights.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)  # (T, S), an index into the palette
    height, width = levels.shape
    lines = b"".join(b"\0" + bytes(row) for row in levels.tolist())
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),  # 8 bits a pixel, by palette
        (b"PLTE", bytes(COLOR) * 256),
        (b"tRNS", bytes(range(256))),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode("ascii")


def store(maps: dict[str, Tensor], labels: str) -> str:
    """An SVG that shows nothing and holds the picture of each map (T, S) under its name, and labels, for `use`."""
    images = "".join(
        f'<image id="{name}" width="{weights.shape[1]}" height="{weights.shape[0]}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="{picture(weights)}"/>'
        for name, weights in maps.items()
    )
    return f'<svg class="store" width="0" height="0" aria-hidden="true"><defs>{images}{labels}</defs></svg>'


def thumbnail(name: str, weights: Tensor) -> str:
    """A stored map, small and without labels."""
    height, width = weights.shape
    return f'<svg viewBox="0 0 {width} {height}" aria-hidden="true"><use href="#{name}"/></svg>'


@dataclass(frozen=True)
class Frame:
    """What the large maps of one kind share: T queries down the side and S keys along the top, as escaped labels.

    name: of the stored labels. All lengths are in pixels.
    """

    name: str
    queries: Sequence[str]
    keys: Sequence[str]

    @property
    def cell(self) -> int:
        return max(SMALLEST_CELL, min(LARGEST_CELL, MAP_PIXELS // max(len(self.queries), len(self.keys))))

    @property
    def left(self) -> int:
        return _room(self.queries)

    @property
    def top(self) -> int:
        return _room(self.keys)

    def labels(self) -> str:
        """To be stored once."""
        side = "".join(
            f'<text x="{self.left - 6}" y="{self.top + self.cell * (index + 0.5):g}" text-anchor="end">{label}</text>'
            for index, label in enumerate(self.queries)
        )
        above = "".join(
            f'<text transform="translate({self.left + self.cell * (index + 0.5):g} {self.top - 6}) rotate(-90)">'
            f"{label}</text>"
            for index, label in enumerate(self.keys)
        )
        return f'<g id="{self.name}" class="labels">{side}{above}</g>'

    def draw(self, name: str, weights: Tensor, title: str, tells: bool) -> str:
        """The stored map `name` with its labels; tells: cells of TOLD_WEIGHT say what they are when pointed at."""
        cell, left, top = self.cell, self.left, self.top
        width, height = cell * len(self.keys), cell * len(self.queries)
        told = (weights >= TOLD_WEIGHT).nonzero().tolist() if tells else []
        cells = "".join(
            f'<rect x="{left + cell * s}" y="{top + cell * t}" width="{cell}" height="{cell}">'
            f"<title>{self.queries[t]} takes {float(weights[t, s]):.2f} from {self.keys[s]}</title></rect>"
            for t, s in told
        )
        full_width, full_height = left + width + 2, top + height + 2
        size = f'width="{full_width}" height="{full_height}" viewBox="0 0 {full_width} {full_height}"'
        return (
            f'<svg class="map" {size} role="img" aria-label="{title}"><use href="#{self.name}"/>'
            f'<rect class="frame" x="{left}" y="{top}" width="{width}" height="{height}"/>'
            f'<g transform="translate({left} {top}) scale({cell})"><use href="#{name}"/></g><g class="told">{cells}</g>'
            "</svg>"
        )


def _room(labels: Sequence[str]) -> int:
    """Pixels for the longest label."""
    return 12 + round(7.3 * max(map(columns, labels)))
