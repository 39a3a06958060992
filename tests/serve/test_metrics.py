"""What Prometheus reads is what happened."""

from __future__ import annotations

import re

import httpx2
import pytest

from jielong.serve.metrics import CONTENT_TYPE, Counter, Histogram, Metrics

from .conftest import Lab

SAMPLE = re.compile(r'^([a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\.)*"(?:,[a-z_]+="(?:[^"\\\n]|\\.)*")*\})? (\S+)$')


def read(text: str) -> dict[str, float]:
    """Every sample of the text format; each line is a sample or says what one is, HELP and TYPE first."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    described: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            assert word in ("HELP", "TYPE") and rest
            described.add(f"{word} {name}")
            continue
        sample = SAMPLE.match(line)
        assert sample, line
        family = re.sub("_(bucket|sum|count)$", "", sample[1]) if f"TYPE {sample[1]}" not in described else sample[1]
        assert {f"HELP {family}", f"TYPE {family}"} <= described, line
        found[sample[1] + (sample[2] or "")] = float(sample[3])
    return found


def test_text_form() -> None:
    metrics = Metrics(["tiny", "other"])
    metrics.requests.add(2, 'a"b\\c\nd', "200")
    metrics.of["tiny"].first_token.observe(0.003)
    metrics.of["tiny"].first_token.observe(99)
    found = read(metrics.render({"tiny": {"rows": 3.5, "steps": 7}, "other": {"rows": 1}}))
    assert found['jielong_http_requests_total{path="a\\"b\\\\c\\nd",status="200"}'] == 2
    assert found['jielong_engine_rows{model="tiny"}'] == 3.5 and found['jielong_engine_rows{model="other"}'] == 1
    assert [name for name in found if "engine_steps" in name] == ['jielong_engine_steps{model="tiny"}']
    first = 'jielong_first_token_seconds_bucket{model="tiny"'
    buckets = [value for name, value in found.items() if name.startswith(first)]
    assert buckets == sorted(buckets) and buckets[0] == 0 and buckets[-1] == 2
    assert found['jielong_first_token_seconds_sum{model="tiny"}'] == pytest.approx(99.003)
    assert found['jielong_first_token_seconds_count{model="tiny"}'] == 2
    assert found['jielong_first_token_seconds_count{model="other"}'] == 0


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram("h", "text", (0.1, 1.0))
    for seconds in (0.1, 0.10001, 1.0, 2.0):
        histogram.observe(seconds)
    assert histogram.counts == [1, 2, 1]
    gauge = Counter("g", "text", kind="gauge")
    gauge.set(5)
    gauge.set(3)
    assert gauge.samples() == ["g 3"]


@pytest.mark.anyio
async def test_counts_of_a_server(lab: Lab) -> None:
    service = lab.service()
    async with lab.client(service) as client:
        before = read((await client.get("/metrics")).text)
        body = {"prompt": [104] * 40, "max_tokens": 5, "ignore_eos": True}
        for _ in range(2):
            assert (await client.post("/v1/completions", json={**body, "n": 2})).status_code == 200
        assert (await client.post("/v1/completions", json={})).status_code == 400
        answer = await client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    after = read(answer.text)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    def own(name: str, more: str = "") -> float:
        """What is counted of the model by itself."""
        return grown(f'{name}{{model="tiny"{more}}}')

    assert grown('jielong_http_requests_total{path="/v1/completions",status="200"}') == 2
    assert grown('jielong_http_requests_total{path="/v1/completions",status="400"}') == 1
    assert own("jielong_tokens_total", ',kind="made"') == 20 == own("jielong_engine_new_tokens")
    assert own("jielong_tokens_total", ',kind="prompt"') == 160 == own("jielong_engine_prompt_tokens")
    assert own("jielong_tokens_total", ',kind="cached"') == own("jielong_engine_cached_tokens") > 0
    assert own("jielong_sequences_total", ',reason="length"') == 4
    assert own("jielong_first_token_seconds_count") == 4
    assert own("jielong_between_tokens_seconds_count") == 16
    assert after['jielong_sequences_open{model="tiny"}'] == 0


@pytest.mark.anyio
async def test_health_version_and_models(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert list((await client.get("/version")).json()) == ["version"]
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list" and (await client.get("/v1/models/tiny")).json() == listed["data"][0]
