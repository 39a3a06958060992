"""Pictures of the page's faces, light, dark and on a phone, with a run's model behind them.

    python benchmarks/screenshots.py runs/quickstart [--out docs/page]

Comparisons are of two models, where the run has a stage `sft` before its last model. `make screenshots` calls it. It
needs Chromium and playwright; the run folder is copied, and left as it is.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chromium import chromium, copy_run, served
from PIL import Image

DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def chat(page: Any) -> None:
    for text in (
        "请接龙：大学",
        "How do you say “the strange bird laughs” in Chinese?",
        "写一个有王子和贝壳的小故事。",
    ):
        _ask(page, text)
    page.get_by_role("button", name="Chances").or_(page.get_by_role("button", name="概率")).click()
    page.locator(".message.assistant").last.locator(".token").nth(9).hover()
    page.locator(".tip.tokens").wait_for()


def chat_phone(page: Any) -> None:
    _ask(page, "写一个有王子和贝壳的小故事。")
    _ask(page, "Tell me where the heron lives.")


def compare(page: Any) -> None:
    page.get_by_role("button", name="Compare").click()
    page.locator(".composer textarea").fill("Tell a story about a pirate and a ring.")
    page.keyboard.press("Enter")
    page.locator(".ballot button").first.wait_for()
    page.wait_for_timeout(300)


def voted(page: Any) -> None:
    compare(page)
    page.locator(".ballot button").first.click()
    page.locator(".ballot .primary").wait_for()


def inside(page: Any) -> None:
    page.locator(".lens td").first.wait_for()
    page.locator(".thumb").nth(5).click()
    page.locator(".parttable").wait_for()


def training(page: Any) -> None:
    page.locator(".strip button").filter(has_text="pretrain").click()
    page.locator(".chart path.line").first.wait_for()
    page.wait_for_timeout(600)


def playground(page: Any) -> None:
    page.locator(".run").click()
    page.wait_for_timeout(9000)
    page.locator(".run").click()


def _keep(picture: bytes, path: Path) -> None:
    """256 colours do for a page, at a third of the size."""
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _ask(page: Any, text: str) -> None:
    number = page.locator(".message[data-id]").count()
    page.locator(".composer textarea").fill(text)
    page.keyboard.press("Enter")
    page.locator(".message[data-id]").nth(number + 1).wait_for()


SPIRAL = "/playground#d=spiral&f=0.1.2.3.4.5.6&u=8.6&l=entropy&n=0.05&s=0.8"
Shot = tuple[str, str, Callable[[Any], None] | None, dict[str, Any]]
SHOTS: tuple[Shot, ...] = (
    ("chat", "/", chat, {}),
    ("chat-dark-zh", "/", chat, {"color_scheme": "dark", "locale": "zh-CN"}),
    ("chat-phone", "/", chat_phone, {"viewport": PHONE}),
    ("inside", "/inside", inside, {}),
    ("inside-dark", "/inside", inside, {"color_scheme": "dark"}),
    ("inside-phone", "/inside", inside, {"viewport": PHONE}),
    ("training", "/training", training, {}),
    ("training-dark", "/training", training, {"color_scheme": "dark"}),
    ("training-phone", "/training", training, {"viewport": PHONE}),
    ("playground", SPIRAL, playground, {}),
    ("playground-dark", SPIRAL, playground, {"color_scheme": "dark"}),
    ("playground-phone", SPIRAL, playground, {"viewport": PHONE}),
    ("neuron", "/playground#neuron", None, {}),
)
PAIR_SHOTS: tuple[Shot, ...] = (
    ("compare", "/", compare, {}),
    ("compare-dark", "/", voted, {"color_scheme": "dark"}),
    ("compare-phone", "/", voted, {"viewport": PHONE}),
)
READY = {"/": ".composer", "/inside": ".lens td", "/training": ".strip", "/playground": ".segments"}
WHOLE = ("inside",)  # shown from top to bottom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/page"))
    parser.add_argument("--only", nargs="*", help="names of pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        run = copy_run(options.run, Path(folder))
        sft = next(iter(sorted(run.glob("[0-9][0-9]-sft"))), None)
        for shots, beside in ((SHOTS, None), (PAIR_SHOTS, sft)):
            wanted = [shot for shot in shots if not options.only or shot[0] in options.only]
            if wanted:
                with served(str(run), () if beside is None else ("--beside", str(beside))) as (address, _):
                    for shot in wanted:
                        take(browser, address, shot, options.out)


def take(browser: Any, address: str, shot: Shot, out: Path) -> None:
    """One picture, from a browser of its own."""
    name, path, act, settings = shot
    usual = {"viewport": DESK, "locale": "en-GB", "color_scheme": "light"}
    context = browser.new_context(base_url=address, **{**usual, **settings})
    page = context.new_page()
    page.goto(path)
    page.locator(READY[path.partition("#")[0]]).first.wait_for()
    page.wait_for_timeout(700)
    if act is not None:
        act(page)
    page.wait_for_timeout(300)
    if name in WHOLE:
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(200)
    _keep(page.screenshot(full_page=name in WHOLE), out / f"{name}.png")
    context.close()
    print(out / f"{name}.png")


if __name__ == "__main__":
    main()
