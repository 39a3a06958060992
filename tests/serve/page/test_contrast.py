"""Text can be read: its contrast with what is behind it is that of WCAG 2.2, level AA, in light and in dark."""

from __future__ import annotations

from typing import Any

import pytest

from .test_faces import FACES, ask, open_chat

# Every visible text, with the colours as they come out: those of its ancestors' backgrounds laid over each other.
# Source: WCAG 2.2, 1.4.3 and the definition of relative luminance. What cannot be pressed is excepted there, too.
LOOK = """() => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  const rgba = (text) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = text;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const seen = (node) => !node.closest('.sr, .skip')
    && node.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !seen(node) || node.closest(':disabled, noscript, script, svg')) continue;
    const style = getComputedStyle(node);
    const below = behind(node);
    const [x, y] = [light(over(rgba(style.color), below)), light(below)].sort((a, b) => b - a);
    const ratio = (x + 0.05) / (y + 0.05);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const said = `${text.data.trim().slice(0, 30)} (${node.className || node.tagName})`;
    if (ratio < least) found.push(`${said}: ${ratio.toFixed(2)} of ${least}`);
  }
  return { found, total: document.body.innerText.length };
}"""

# Colours that tell a chance, at their strongest: a token that nobody expected, or a cell that was quite sure.
EXTREMES = """() => {
  for (const node of document.querySelectorAll('.token')) node.style.setProperty('--p', 0);
  for (const node of document.querySelectorAll('.lens tbody td')) node.style.setProperty('--p', 1);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(tab: Any, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    open_chat(tab)
    ask(tab, "who sat there?")
    tab.get_by_role("button", name="Settings").click()
    tab.get_by_role("button", name="Chances").click()
    for path in FACES:
        if path != "/":
            tab.goto(path)
            tab.locator("main .face > *").first.wait_for()
            tab.wait_for_timeout(400)
        tab.evaluate(EXTREMES)
        told = tab.evaluate(LOOK)
        assert told["total"] > 100 and not told["found"], f"{path}: {told['found']}"


def test_the_look_sees_what_is_faint(tab: Any) -> None:
    tab.goto("/playground")
    tab.locator("main .face > *").first.wait_for()
    tab.evaluate("document.querySelector('main h2').style.color = 'rgb(120 120 120 / 50%)'")
    assert len(tab.evaluate(LOOK)["found"]) == 1
