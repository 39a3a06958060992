"""Each rule by a document that breaks it and a like one that does not."""

from __future__ import annotations

import dataclasses

import pytest

from jielong.data.curate import CurateConfig
from jielong.data.language import detect
from jielong.data.quality import judge
from jielong.data.words import TextBatch, Vocabulary

PROSE = (
    "When the rain had stopped, Mara walked down to the harbour and looked for the boat that her brother had painted. "
    "It was gone. An old man with a grey cap told her that he had seen two boys row it across the bay in the "
    "early morning, and that neither of them had known how to steer. She thanked him, borrowed a bicycle "
    "and rode round the whole coast."
)
ZH = (
    "雨停了以后，小明走到港口去找哥哥刷过漆的船。船不见了。一个戴灰帽子的老人告诉他，早上有两个孩子把船划到对岸去了，"
    "他们都不会掌舵。他谢过老人，借了一辆自行车，沿着海边骑了一圈。"
)


def verdicts(*texts: str, **settings: object) -> list[str | None]:
    batch = TextBatch(texts, Vocabulary())
    return judge(batch, detect(batch), CurateConfig(**settings).quality_limits())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        ZH,
        "37+45: ones 7+5=12, tens 3+4+1=8, so 82.\n93-60: ones 3-0=3, tens 9-6-0=3, so 33.\n36+72: ones 6+2=8, so 108.",
        "6-0-0=6, 4-0-0=4, 7-2-1=4, 6-5-1=0, 6-3-0=3, 8-5-0=3, 2+8+1=11",
        "the red cat: 红色的猫\nthree dogs: 三只狗\nthe big house: 大房子\nthe old doctor: 老医生",
        "1. apple\n2. pear\n3. plum\n4. cherry\n5. orange\n6. lemon",
        "$ ls\nnotes.txt  song.txt  todo.txt\n$ cat todo.txt\nbuy milk\n$ pwd\n/home/ann",
        "Mara was born in 1984. In 2005 she moved to Dover.",
        "12 × 12 = 144\n2 × 1 = 2\n2 × 2 = 4\n2 × 3 = 6\n2 × 4 = 8",
    ],
)
def test_kept(text: str) -> None:
    assert verdicts(text) == [None]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("too_short", "Too short to tell."),
        ("too_short", "太短了，不要。"),
        ("garbage", "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod."),
        ("garbage", "网页内容锟斤拷锟斤拷无法显示，请稍后再试，谢谢您的理解和支持。"),
        ("symbols", "<div class={x}><a|b>~~</div>^^##@@ {{ }} <p>hello</p> || \\\\ <br> ``"),
        ("symbols", "one... two... three... four... five... six... seven... eight... nine..."),
        ("not_alphabetic", "5612 7781 9912 4410 7723 4471 9182 6651 2231 8821"),
        ("not_alphabetic", "name 12 34 56 78 90 total 11 22 33 44 55 66 77 88"),
        ("not_alphabetic", "!!! ??? !!! ,,, ;;; ::: ''' ((( ))) !!! ??? ,,, a b"),
        ("word_length", "x" * 150 + " is no word."),
        ("word_length", " ".join(["extraordinarily internationalisation"] * 2 + ["counterrevolutionaries"] * 60)),
        ("bullet_lines", "\n".join(f"- the item of the {word} list" for word in PROSE.split()[:20])),
        (
            "ellipsis_lines",
            "\n".join(f"The story of the {word}, and then…" for word in PROSE.split()[:20]),
        ),
        ("no_stop_words", " ".join(word for word in (PROSE * 4).split() if len(word) > 4)),
        ("no_stop_words", "".join(chr(0x4E00 + i * 37 % 20000) for i in range(400))),
        ("repeated_lines", "Hello to all of you there.\n" * 4 + "The end of the story is near."),
        ("repeated_phrases", "Buy it now! " * 10),
        ("repeated_phrases", PROSE + " " + PROSE),
        ("repeated_phrases", "天气很好" * 20),
    ],
)
def test_removed(rule: str, text: str) -> None:
    assert verdicts(text, max_symbol_word_ratio=0.5 if rule == "ellipsis_lines" else 0.1) == [rule]


def test_too_long() -> None:
    assert verdicts(PROSE, max_characters=len(PROSE)) == [None]
    assert verdicts(PROSE, max_characters=len(PROSE) - 1) == ["too_long"]


def test_every_limit_has_an_effect() -> None:
    """Closed as far as it goes, each limit removes prose that its default keeps."""
    text = "\n\n".join((PROSE, PROSE.replace("Mara", "Ines"), PROSE.replace("boat", "kite")))
    text += "\n- 3 of 4…\n# 1\n\nThe end.\n\nThe end."
    closed = {
        "min_characters": 10**6, "max_characters": 41, "max_symbol_word_ratio": 0.0, "max_symbol_fraction": 0.0,
        "min_alphabetic_fraction": 1.0, "max_digit_fraction": 0.0, "min_mean_word_characters": 9.0,
        "max_mean_word_characters": 3.1, "max_bullet_lines": 0.0, "max_ellipsis_lines": 0.0, "min_stop_words": 1000,
        "max_duplicate_lines": 0.0, "max_duplicate_line_characters": 0.0, "max_duplicate_paragraphs": 0.0,
        "max_top_grams": (0.0, 0.0, 0.0), "max_duplicate_grams": (0.0,) * 6,
    }  # fmt: skip
    open_ = {
        "max_top_grams": (1.0,) * 3,
        "max_duplicate_grams": (1.0,) * 6,
        "max_duplicate_lines": 1.0,
        "max_ellipsis_lines": 1.0,
    }
    assert verdicts(text, **open_) == [None]
    for name, limit in closed.items():
        assert verdicts(text, **{**open_, name: limit}) != [None], name
    unused = {field.name for field in dataclasses.fields(CurateConfig().quality_limits())} - set(closed)
    assert unused == {"mean_word_characters", "min_words_for_word_rules"}


def test_fractions_of_phrases_by_hand() -> None:
    """60 tokens "aa", "ab", ... of two letters; one pair of them comes six times: 6 * 4 of 120 letters = 0.2."""
    names = [a + b for a in "bcdfghjk" for b in "aeiouwxyz"]
    tokens = names[:48]
    for i in range(6):
        tokens[i * 8 + 4 : i * 8 + 4] = ["qa", "qe"]
    text = " ".join(tokens)
    assert len(tokens) == 60
    rules = {"languages": ("en",), "min_stop_words": 0, "min_mean_word_characters": 1.0}
    assert verdicts(text, max_top_grams=(0.2,), max_duplicate_grams=(), **rules) == [None]
    assert verdicts(text, max_top_grams=(0.199,), max_duplicate_grams=(), **rules) == ["repeated_phrases"]


def test_a_document_is_judged_alone() -> None:
    texts = [PROSE, "", PROSE + " " + PROSE, ZH, "37 + 45 = 82", "Buy it now! " * 10, PROSE]
    assert verdicts(*texts) == [verdicts(text)[0] for text in texts]
