"""The number that a written reply comes to."""

from __future__ import annotations

import re

_MARKED = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")
_ANY = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?|(?<![\w.])-?\.\d+")


def final_number(text: str) -> str | None:
    """The number after "####", else the last number of the text, written in one way; None without any.

    "1,234.50", "$1234.5" and "1234.5" are one number. Only the first mark counts: what a base model writes after its
    answer is another question.
    """
    marked = _MARKED.search(text)
    if marked:
        return plain_number(marked.group(1))
    found = _ANY.findall(text)
    return plain_number(found[-1]) if found else None


def plain_number(text: str) -> str:
    """One spelling for each number: no commas, no $, no zeros that say nothing. Other text stays as it is."""
    bare = text.replace(",", "").replace("$", "").strip().rstrip(".")
    match = re.fullmatch(r"([-+]?)0*(\d*)(?:\.(\d*?)0*)?", bare)
    if match is None or not (match[2] or match[3] or "0" in bare):
        return text.strip()
    whole, fraction = match[2] or "0", match[3] or ""
    sign = "-" if match[1] == "-" and (whole != "0" or fraction) else ""
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def cut_at(text: str, stops: tuple[str, ...]) -> str:
    """The text up to the first of the stops that stands in it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
