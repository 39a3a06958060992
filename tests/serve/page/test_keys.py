"""The page on a server with API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jielong.serve.pages import CONTENT_SECURITY_POLICY, REPORT_POLICY, WEB, Pages

from ..conftest import Lab
from .conftest import Watch, serving, write_run

KEY = "a-key-for-tests"


def test_the_report_opens_with_the_key(browser: Any, lab: Lab, tmp_path: Path) -> None:
    """A link sends no key: a frame of its own fetches the report with it, shows its style, and runs no script."""
    folder = tmp_path / "a run"
    write_run(folder)
    (folder / "report.html").write_text(
        '<!doctype html><style>p { color: rgb(0, 128, 128) }</style><p id="x">the report</p><a href="#x">there</a>'
        "<script>document.querySelector('p').textContent = 'a script ran'</script>"
    )
    watch = Watch(expected=("401", "Blocked script execution"))  # both as they should be
    context = browser.new_context(locale="en-GB")
    tab = context.new_page()
    tab.set_default_timeout(8000)
    with serving(lab, folder, keys=(KEY,)) as site:
        context.on("page", lambda page: watch.over(page, site.url))
        watch.over(tab, site.url)
        tab.goto(f"{site.url}/training")
        tab.locator("dialog input").fill(KEY)
        tab.keyboard.press("Enter")
        with context.expect_page() as opened:
            tab.get_by_role("link", name="Report").click()
        opened.value.set_default_timeout(8000)
        said = opened.value.frame_locator("iframe").locator("p")
        assert said.inner_text() == "the report"
        assert said.evaluate("(node) => getComputedStyle(node).color") == "rgb(0, 128, 128)"
        opened.value.frame_locator("iframe").get_by_role("link").click()
        assert said.inner_text() == "the report"
        context.close()
    assert not watch.wrong, watch.wrong


def test_the_frame_of_the_report_is_public_and_what_it_shows_is_not(lab: Lab, tmp_path: Path) -> None:
    write_run(tmp_path / "quick")
    with serving(lab, tmp_path / "quick", keys=(KEY,)) as site, site.client as client:
        frame = client.get("/report")
        assert frame.status_code == 200 and frame.headers["content-security-policy"] == REPORT_POLICY
        assert client.get("/api/runs/quick/report").status_code == 401
        given = client.get("/api/runs/quick/report", headers={"authorization": f"Bearer {KEY}"})
        assert given.status_code == 200 and "the report" in given.text


def test_only_the_frame_has_a_policy_of_its_own() -> None:
    for policy in (CONTENT_SECURITY_POLICY, REPORT_POLICY):
        assert "script-src 'self'" in policy or "default-src 'self'" in policy
        assert "unsafe-eval" not in policy and "http" not in policy and "*" not in policy
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert {route.path for route in Pages(WEB).routes()} >= {"/", "/report"}
