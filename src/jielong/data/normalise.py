"""One form for every text: Unicode NFC, plain line ends, no control characters, no broken encodings, no page
furniture.
"""

from __future__ import annotations

import re
import unicodedata

_LINE_END = re.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
# Control characters but tab and newline; soft hyphen, zero-width space, direction marks, byte order mark; half
# surrogate pairs. The zero-width joiners stay: emoji and several scripts are spelt with them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SPACES = re.compile("[\t \xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_AROUND_LINE_END = re.compile(r" ?\n ?")
_TRAILING = re.compile(r"[ \t]+\n")
_MANY_LINE_ENDS = re.compile(r"\n{3,}")


def _cp1252_bytes() -> dict[str, int]:
    """Each character that byte 0x80..0xff turns into when UTF-8 is misread as Windows-1252 or Latin-1."""
    table = {chr(value): value for value in range(0x80, 0x100)}
    for value in range(0x80, 0xA0):
        try:
            table[bytes([value]).decode("cp1252")] = value
        except UnicodeDecodeError:
            continue
    return table


_BYTE_OF = _cp1252_bytes()
_TAIL = "[" + "".join(re.escape(sign) for sign, value in _BYTE_OF.items() if 0x80 <= value < 0xC0) + "]"
_MISREAD = re.compile(f"(?:[\xc2-\xdf]{_TAIL}|[\xe0-\xef]{_TAIL}{{2}}|[\xf0-\xf4]{_TAIL}{{3}})+")

# Lines of a page that belong to the site and not to the text. Short lines only: a sentence about cookies is text.
_FURNITURE = re.compile(
    r"accept (?:all )?cookies|we use cookies|uses cookies to|cookie (?:policy|settings|preferences)|privacy policy"
    r"|all rights reserved|terms (?:of (?:use|service)|and conditions)|copyright (?:©|\(c\)|\d{4})|^© ?\d{4}"
    r"|subscribe to our|powered by wordpress|sign up (?:for|to) (?:our|the) newsletter|follow us on"
    r"|share (?:this )?on (?:facebook|twitter|linkedin|whatsapp)"
    r"|enable (?:java)?scripts?|click here (?:to|for)|^(?:skip|jump) to (?:main )?content"
    r"|^(?:home|menu)(?: ?[|>»] ?\w+)+"
    r"|^(?:log|sign) ?in(?: ?[|/] ?[\w ]+){0,5}$|^share this(?: (?:page|article|post|story))?\W*$"
    r"|^(?:read more|load more|leave a (?:reply|comment)|back to top|advertisement)\W*$"
    r"|版权所有|保留所有权利|点击(?:这里|此处|下载|查看更多)|扫码关注|关注(?:我们的)?(?:微信)?公众号|[京沪粤浙苏]icp备|^上一篇|^下一篇"
    r"|返回(?:顶部|首页)|^(?:登录|注册|首页)(?: ?[|/>»] ?\S+)*$|免责声明|隐私政策|使用条款",
    re.IGNORECASE | re.MULTILINE,
)
_FURNITURE_SIGNS = (
    "cookie", "policy", "reserved", "terms", "copyright", "©", "subscribe", "powered by", "newsletter", "follow us",
    "share ",
    "script", "click here", " to content", " to main", "home", "menu", "log in", "login", "sign in", "signin",
    "read more",
    "load more", "leave a", "to top", "advertisement", "版权", "权利", "点击", "关注", "icp备", "一篇",
    "返回", "登录", "注册", "首页",
    "免责", "隐私", "条款",
)  # fmt: skip
_MAX_FURNITURE_CHARACTERS = 160


def normalise(text: str, squeeze_spaces: bool = True) -> str:
    """The text in its one form; doing it twice changes nothing.

    squeeze_spaces: make every run of blanks one space and cut it at line ends. False keeps indentation and columns
        (code, tables,
    terminal output) and cuts trailing blanks only.
    """
    text = _cleaned(text)
    if not squeeze_spaces:
        text = _TRAILING.sub("\n", text + "\n")
    elif "  " in text or " \n" in text or "\n " in text or not text.replace("\n", "").isprintable():
        text = _AROUND_LINE_END.sub("\n", _SPACES.sub(" ", text))
    if "\n\n\n" in text:
        text = _MANY_LINE_ENDS.sub("\n\n", text)
    return text.strip() if squeeze_spaces else text.strip("\n").rstrip()


def _cleaned(text: str) -> str:
    """Encodings repaired, plain line ends, nothing invisible, NFC: again and again, for one may uncover another."""
    while True:
        before = text
        if not text.isascii():
            text = _repair(text)
        if not text.replace("\n", "").isprintable():  # true of few texts: an odd blank or a control character
            text = _INVISIBLE.sub("", _LINE_END.sub("\n", text))
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        if text == before:
            return text


def strip_furniture(text: str) -> tuple[str, int]:
    """The text without cookie notices, menus, share buttons and footers, and how many lines those were."""
    folded = text.casefold()
    if not any(sign in folded for sign in _FURNITURE_SIGNS):  # much faster than the pattern, which few documents need
        return text, 0
    kept, num_cut = [], 0
    for line in text.split("\n"):
        if len(line) <= _MAX_FURNITURE_CHARACTERS and _FURNITURE.search(line):
            num_cut += 1
        else:
            kept.append(line)
    return (_MANY_LINE_ENDS.sub("\n\n", "\n".join(kept)).strip("\n"), num_cut) if num_cut else (text, 0)


def _repair(text: str) -> str:
    """The text with misread UTF-8 put right, also where that happened several times over."""
    while (repaired := _MISREAD.sub(_reread, text)) != text:
        text = repaired
    return text


def _reread(match: re.Match[str]) -> str:
    """A run that looks like misread UTF-8, as what it was; itself when it is no valid UTF-8 or too short to be sure.

    One Chinese or other rare character alone may be an accident of French typography ("é…»"), so those need company.
    """
    run = match.group()
    try:
        repaired = bytes(_BYTE_OF[sign] for sign in run).decode("utf-8")
    except UnicodeDecodeError:
        return run
    is_usual = all(sign < "\u0180" or "\u2010" <= sign < "\u2190" or sign == "\ufeff" for sign in repaired)
    return repaired if is_usual or len(repaired) > 1 else run
