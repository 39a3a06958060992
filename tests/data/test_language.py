"""English, Chinese and neither."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from jielong.data.language import detect
from jielong.data.words import TextBatch, Vocabulary

SHARED = Path(__file__).parents[3] / "shared" / "data"


def languages(texts: list[str]) -> list[str]:
    return detect(TextBatch(texts, Vocabulary()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog sleeps in the house and does not want to go out.", "en"),
        ("Mara lives in Tilska.", "en"),
        ("apple, river, stone, table", "en"),
        ("王芳住在金沙，她是医生。", "zh"),
        ("the red cat: 红色的猫\nthree dogs: 三只狗\nthe big house: 大房子", "en"),
        ("请问 Python 怎么安装？我用的是 Linux 系统，已经有 gcc 了。", "zh"),
        ("12 + 30 = 42", ""),
        ("!!! ???", ""),
        ("", ""),
        ("El perro duerme en la casa y no quiere salir.", "other"),
        ("Der Hund schläft heute lange im Garten, weil er müde ist.", "other"),
        ("Le chat dort sur la chaise pendant que nous mangeons.", "other"),
        ("Il gatto beve il latte e poi dorme vicino alla finestra.", "other"),
        ("Съешь же ещё этих мягких французских булок", "other"),
        ("これは日本語の文章です。東京へ行きます。", "other"),
        ("모든 인류 구성원의 천부의 존엄성", "other"),
        ("qzx vkjw pqrt zzxv wqkj bvcx qwzr tkpl xxqj vwzk pqzx jkvw zqxr bkvj", "other"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert languages([text]) == [expected]


def test_a_document_is_judged_alone() -> None:
    texts = ["The cat sat on the mat.", "", "我们去公园。", "Wir gehen morgen nicht zur Schule, sondern an den See."]
    assert languages(texts) == [languages([text])[0] for text in texts] == ["en", "", "zh", "other"]


def test_declaration_of_human_rights_in_388_languages() -> None:
    """Pieces of 300 characters. Scots and Nigerian Pidgin are near enough to English to be left out of the count."""
    path = SHARED / "udhr" / "udhr2.jsonl.gz"
    if not path.exists():
        pytest.skip("the shared data set udhr is not here")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rng = random.Random(0)
    pieces = []
    for row in rows:
        text = " ".join(row["text"].split())
        for _ in range(4):
            start = rng.randrange(max(len(text) - 300, 1))
            pieces.append((row["lang"], text[start : start + 300]))
    found = languages([piece for _, piece in pieces])
    by_truth: dict[str, list[str]] = {"en": [], "zh": [], "other": []}
    for (code, piece), language in zip(pieces, found, strict=True):
        truth = "en" if code == "eng" else "zh" if code.startswith("cmn") else "other"
        if code not in ("sco", "pcm") and any(map(str.isalpha, piece)):
            by_truth[truth].append(language)
    assert by_truth["en"] == ["en"] * 4
    assert by_truth["zh"].count("zh") >= 7
    assert by_truth["other"].count("other") >= 0.98 * len(by_truth["other"])
