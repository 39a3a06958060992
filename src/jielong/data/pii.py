"""Personal data: e-mail addresses, telephone numbers and IP addresses become placeholders.

Numbers are mostly not telephone numbers. What is masked must look like one by itself (a Chinese mobile number, an
international prefix, the grouping of a national one) or follow a word such as "call" or 电话. Sums, years, dates,
prices and version numbers stay as they are.
"""

from __future__ import annotations

import ipaddress
import re

PLACEHOLDERS = {"email": "<EMAIL>", "phone": "<PHONE>", "ip": "<IP>"}

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}"  # Chinese mobile
    r"|\+[1-9]\d{0,2}(?:[- .]?\(?\d{1,4}\)?){2,5}"  # any country, with its prefix; digits are counted below
    r"|(?:1[-. ])?\(\d{3}\) ?\d{3}[-. ]\d{4}"  # (415) 555-2671
    r"|(?:1[-.])?[2-9]\d{2}([-.])\d{3}\1\d{4}"  # 415-555-2671
    r"|\(?0\d{2,3}\)?[- ]\d{7,8}|\(?0\d{2,4}\)? \d{3,4} \d{3,4}"  # 010-12345678, 020 7946 0958
    r"|[48]00[- ]\d{3}[- ]\d{4}"
    r")(?![\d]|[-.]\d)",
    re.ASCII,
)
_CUE = re.compile(
    r"(?:\b(?:phone|telephone|tel|mobile|cell|call|fax|whatsapp|hotline)\b|电话|手机号?|热线|传真|联系方式)"
    r"(?: (?:me|us|number|no|at|on|is))*"
    r"[号码是:\s.：]{0,4}(\+?\(?\d[\d() -]{5,18}\d)(?![\d.]*\d)",
    re.IGNORECASE,
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)(?![A-Za-z_])", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]*\d)(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", re.ASCII)
_VERSION_BEFORE = re.compile(
    r"(?:\bv|version|release|build|firmware|section|chapter|§|版本号?|第)[\s:：.]*$", re.IGNORECASE
)
# What must be there for the slower patterns above to have a chance.
_MAYBE_PHONE = re.compile(r"(?:\d[-() .]{0,2}){6}\d", re.ASCII)
_MAYBE_IPV4 = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d", re.ASCII)
_MAYBE_IPV6 = re.compile(r"[0-9A-Fa-f]:[0-9A-Fa-f]{0,4}:", re.ASCII)
_DATE = re.compile(r"\d{4}[- ]\d{1,2}[- ]\d{1,2}|\d{1,2}[- ]\d{1,2}[- ]\d{4}|[12]\d{3}[- ]+[12]\d{3}", re.ASCII)
_MINUS_BEFORE = re.compile(r"[\d)] *- *$", re.ASCII)  # a dash alone may open a list
_MATHS = "+-*/=×÷<>^%$€£¥−"


def mask_pii(text: str) -> tuple[str, dict[str, int]]:
    """The text with placeholders, and how many of each kind {"email", "phone", "ip"} were put in; kinds not found are
    left out.
    """
    counts: dict[str, int] = {}

    def put(kind: str) -> str:
        counts[kind] = counts.get(kind, 0) + 1
        return PLACEHOLDERS[kind]

    def phone(match: re.Match[str]) -> str:
        return put("phone") if _is_phone(match) else match.group()

    def cued(match: re.Match[str]) -> str:
        return (
            match.group()[: match.start(1) - match.start()] + put("phone") if _is_cued_phone(match) else match.group()
        )

    def ip(match: re.Match[str]) -> str:
        return put("ip") if _is_address(match) else match.group()

    if "@" in text:
        text = _EMAIL.sub(lambda _: put("email"), text)
    if _MAYBE_IPV4.search(text):
        text = _IPV4.sub(ip, text)
    if _MAYBE_IPV6.search(text):
        text = _IPV6.sub(ip, text)
    if _MAYBE_PHONE.search(text):
        text = _CUE.sub(cued, _PHONE.sub(phone, text))
    return text, counts


def _is_phone(match: re.Match[str]) -> bool:
    found = match.group()
    num_digits = sum(sign.isdigit() for sign in found)
    if found.startswith("+") and not 8 <= num_digits <= 15:
        return False
    return not _in_arithmetic(match)


def _is_cued_phone(match: re.Match[str]) -> bool:
    number = match.group(1)
    num_digits = sum(sign.isdigit() for sign in number)
    is_sum = re.search(r"\d -|- \d", number) is not None
    is_date = _DATE.fullmatch(number) is not None
    following = match.string[match.end() : match.end() + 8].lstrip()[:1]
    return 7 <= num_digits <= 15 and not is_sum and not is_date and following not in tuple("+*/=×÷%")


def _in_arithmetic(match: re.Match[str]) -> bool:
    """Whether the number stands beside an arithmetic or currency sign: then it is an operand or a price."""
    signs = _MATHS if match.group().isdigit() else _MATHS.replace("/", "")  # (415) 555-2671 / 415-555-2672 is a list
    before = match.string[max(match.start() - 8, 0) : match.start()].rstrip()[-1:]
    after = match.string[match.end() : match.end() + 8].lstrip()
    if match.group().startswith("+") and (before.isdigit() or before == ")"):
        return True
    if _MINUS_BEFORE.search(match.string[max(match.start() - 8, 0) : match.start()]):
        return True
    is_dash_before_words = after[:1] == "-" and not after[1:].lstrip()[:1].isdigit()
    return (before != "" and before in signs and before not in "<>-") or (
        after != "" and after[0] in signs and after[0] not in "<>" and not is_dash_before_words
    )


def _is_address(match: re.Match[str]) -> bool:
    """A real address that names some machine: no version number, no mask, not this machine itself."""
    found = match.group()
    if _VERSION_BEFORE.search(match.string[max(match.start() - 16, 0) : match.start()]):
        return False
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or found.startswith("255."):
        return False
    return address.version == 4 or sum(group != "" for group in found.split(":")) >= 3
