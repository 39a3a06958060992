"""What is masked, and above all what is not."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jielong.data.pii import mask_pii


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail ann.lee+x@mail.example.co.uk, please", "mail <EMAIL>, please"),
        ("邮箱zhang_3@example.com谢谢", "邮箱<EMAIL>谢谢"),
        ("手机13912345678，谢谢", "手机<PHONE>，谢谢"),
        ("ring 139 1234 5678 or +86 139-1234-5678", "ring <PHONE> or <PHONE>"),
        ("Call +1 202 555 0143 in the morning.", "Call <PHONE> in the morning."),
        ("(415) 555-2671 / 415-555-2671 / 1-800-555-0199", "<PHONE> / <PHONE> / <PHONE>"),
        ("+44 20 7946 0958 or 020 7946 0958", "<PHONE> or <PHONE>"),
        ("电话：010-12345678", "电话：<PHONE>"),
        ("Phone: 555 0142 99", "Phone: <PHONE>"),
        ("from 192.0.2.17, port 80", "from <IP>, port 80"),
        ("ping 8.8.8.8.", "ping <IP>."),
        ("at 2001:db8::8a2e:370:7334 now", "at <IP> now"),
        ("at 2001:0db8:85a3:0000:0000:8a2e:0370:7334.", "at <IP>."),
    ],
)
def test_masked(text: str, expected: str) -> None:
    masked, counts = mask_pii(text)
    assert masked == expected
    assert sum(counts.values()) == expected.count("<")
    assert mask_pii(masked) == (masked, {})


@pytest.mark.parametrize(
    "text",
    [
        "37 + 45 = 82",
        "13912345678 + 5 = 13912345683",
        "100-200-300",
        "He was born in 1984 and died in 2031.",
        "from 1914-1918 to 1939-1945",
        "2024-01-02 12:34:56",
        "02/03/2024",
        "3.14159265358979",
        "v1.2.3.4 and version 10.0.0.1",
        "python 3.11.7",
        "see section 1.2.3.4",
        "$1,234,567.89 or 12,345,678 yuan",
        "ISBN 978-3-16-148410-0",
        "std::vector a::b",
        "localhost is 127.0.0.1, mask 255.255.255.0",
        "999.999.999.999",
        "1.2.3.4.5",
        "12:34:56 and ::",
        "a@b",
        "@home @ 5",
        "1000000007 is prime",
        "12345678901234567890",
        "call 12 people in 2024",
        "0.1234567",
        "1-2-3-4-5-6-7-8-9",
        "the ratio 16:9:4",
        "price: 13800 - 13900",
        "电话很多，有 300 个",
        "call 1999 - 2005 what you will",
        "8-5-0=3, 10-9-1=0, 86+13=99",
        "99-12: ones 9-2=7, tens 9-1-0=8, so 87.",
        "de:ad:be:ef:00:01",
    ],
)
def test_left_alone(text: str) -> None:
    assert mask_pii(text) == (text, {})


NUMBERS = st.integers(0, 10**12)


@example(0, 13_000_000_000, " - ")
@given(NUMBERS, NUMBERS, st.sampled_from(["+", "-", "*", "×", "/", " + ", " - ", " × "]))
def test_sums_are_left_alone(a: int, b: int, sign: str) -> None:
    text = f"What is {a}{sign}{b}? {a}{sign}{b} = {a + b}."
    assert mask_pii(text) == (text, {})


@given(
    st.dates(datetime.date(1000, 1, 1), datetime.date(2999, 12, 31)),
    st.times(),
    st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y年%m月%d日"]),
)
def test_dates_and_times_are_left_alone(date: datetime.date, time: datetime.time, form: str) -> None:
    text = f"On {date.strftime(form)} at {time:%H:%M:%S}, {date.year}-{date.year + 1}, {date.isoformat()}T{time:%H:%M}"
    assert mask_pii(text) == (text, {})


@given(st.floats(0, 1e9), st.integers(1, 99), st.integers(0, 99), st.integers(0, 999))
def test_prices_and_versions_are_left_alone(price: float, major: int, minor: int, patch: int) -> None:
    version = f"{major}.{minor}.{patch}"
    text = f"${price:,.2f} €{price:.2f} {price:.3f} v{version} {version} release {version}.1"
    assert mask_pii(text) == (text, {})


@given(
    st.integers(13_000_000_000, 19_999_999_999),
    st.sampled_from(["", "手机", "Tel. ", "+86", "86-"]),
    st.sampled_from(["", "。", ", ok", " ok"]),
)
def test_chinese_mobile_numbers_are_found_anywhere(number: int, before: str, after: str) -> None:
    masked, counts = mask_pii(f"找我 {before}{number}{after}")
    assert counts == {"phone": 1} and str(number) not in masked


@given(st.ip_addresses())
def test_addresses_are_found_unless_they_name_this_machine(address: object) -> None:
    is_plain = not (address.is_loopback or address.is_unspecified or str(address).startswith("255."))  # type: ignore[attr-defined]
    groups = [group for group in str(address).split(":") if group]
    if is_plain and (address.version == 4 or (len(groups) >= 3 and any(map(str.isdigit, str(address))))):  # type: ignore[attr-defined]
        assert mask_pii(f"host {address} is up") == ("host <IP> is up", {"ip": 1})


@given(st.text(max_size=200))
def test_masking_twice_changes_nothing(text: str) -> None:
    masked, _ = mask_pii(text)
    assert mask_pii(masked) == (masked, {})
