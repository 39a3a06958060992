"""Markdown in a real browser: what comes out, that a stream ends as the whole, and that nothing hostile comes alive."""

from __future__ import annotations

import random
from typing import Any

import pytest

WHOLE = """([text, tokens]) => import('/web/markdown/render.js').then(({ Markdown }) => {
  const host = document.createElement('div');
  const markdown = new Markdown(host, { tokens });
  markdown.push(text);
  markdown.flush();
  return host.innerHTML;
})"""
STREAMED = """([pieces, every]) => import('/web/markdown/render.js').then(({ Markdown }) => {
  const host = document.createElement('div');
  const markdown = new Markdown(host, { tokens: false });
  pieces.forEach((piece, place) => { markdown.push(piece); if (place % every === 0) markdown.flush(); });
  markdown.flush();
  return host.innerHTML;
})"""

RICH = """# 标题 *one*

A paragraph with **bold**, *em*, ***both***, `code`, ~~gone~~ and a [link](https://example.org/a_(b)).
Its second line, with https://example.org/x?y=1. And 2 * 3 * 4, snake_case_name.

- one
- two with `co|de`
  - nested

  a second paragraph
3. no

1. first
2. second

   ```python
   def f():
       return 1
   ```
4) other

| a | b \\| c | d |
|:--|--:|:-:|
| 1 | **2** | 你好 |
| short |

> quoted
> > deeper
> - item

```
unclosed *fence*
- no list 😀
"""


def html(modules: Any, text: str) -> str:
    return str(modules.evaluate(WHOLE, [text, False]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "<p>plain</p>"),
        ("a **b** c", "<p>a <strong>b</strong> c</p>"),
        ("***both***", "<p><strong><em>both</em></strong></p>"),
        ("2 * 3 * 4 and a_b_c", "<p>2 * 3 * 4 and a_b_c</p>"),
        ("one\ntwo", "<p>one<br>two</p>"),
        ("## 二", "<h4>二</h4>"),
        ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
        ("5. a\n6. b", '<ol start="5"><li>a</li><li>b</li></ol>'),
        ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("> q\n> r\n\nend", "<blockquote><p>q<br>r</p></blockquote><p>end</p>"),
        ("in 1984. and\n2020. no list", "<p>in 1984. and<br>2020. no list</p>"),
        ("\\*no\\* `a*b`", "<p>*no* <code>a*b</code></p>"),
        ("**open `and", "<p>**open `and</p>"),
        ("---", "<hr>"),
        ("<b>x</b> &amp;", "<p>&lt;b&gt;x&lt;/b&gt; &amp;amp;</p>"),
        ("a | b", "<p>a | b</p>"),
    ],
)
def test_what_comes_out(modules: Any, text: str, expected: str) -> None:
    assert html(modules, text) == expected


def test_code_tables_and_links(modules: Any) -> None:
    assert "<figcaption><span>py</span>" in html(modules, "```py\nx < 1\n```") and "x &lt; 1" in html(
        modules, "```py\nx < 1\n```"
    )
    table = html(modules, "| a | b |\n|--|--:|\n| 1 | x \\| y |")
    assert '<th class="left">a</th><th class="right">b</th>' in table and '<td class="right">x | y</td>' in table
    link = html(modules, "[t](https://example.org/a_(b))")
    assert 'href="https://example.org/a_(b)"' in link and 'rel="noopener noreferrer"' in link
    assert "https://example.org/x</a>." in html(modules, "see https://example.org/x.")


def test_code_is_copied_as_it_was_written(modules: Any) -> None:
    copied = modules.evaluate("""() => import('/web/markdown/render.js').then(async ({ render }) => {
      const host = document.createElement('div');
      render(host, '```py\\nx < 1\\n\\n  y\\n```');
      const copied = new Promise((resolve) => {
        navigator.clipboard.writeText = async (text) => resolve(text);
        setTimeout(() => resolve(null), 2000);
      });
      host.querySelector('button').click();
      return copied;
    })""")
    assert copied == "x < 1\n\n  y"


def test_a_stream_ends_as_the_whole(modules: Any) -> None:
    """Random cuts, also through a character's surrogates as JavaScript counts them, drawn after every or any piece."""
    whole = html(modules, RICH)
    assert all(part in whole for part in ("<h3>", "<table>", "<blockquote>", "<ol start", "unclosed *fence*", "<del>"))
    rng = random.Random(5)
    for number in range(40):
        cuts = sorted(rng.sample(range(1, len(RICH)), rng.choice((0, 3, 40, len(RICH) - 1))))
        pieces = [RICH[a:b] for a, b in zip([0, *cuts], [*cuts, len(RICH)], strict=True)]
        assert modules.evaluate(STREAMED, [pieces, 1 + number % 3]) == whole, cuts


def test_any_text_streams_as_it_stands(modules: Any) -> None:
    rng = random.Random(6)
    marks = [
        "*",
        "**",
        "_",
        "`",
        "```",
        "\n",
        "\n\n",
        "- ",
        "1. ",
        "> ",
        "# ",
        "|",
        "|-|",
        "---",
        " ",
        "a",
        "好",
        "[x](",
        ")",
        "\\",
    ]
    for _ in range(120):
        pieces = [rng.choice(marks) for _ in range(rng.randint(1, 30))]
        assert modules.evaluate(STREAMED, [pieces, 1]) == html(modules, "".join(pieces)), pieces


def test_tokens_keep_their_numbers(modules: Any) -> None:
    found = modules.evaluate("""() => import('/web/markdown/render.js').then(({ Markdown }) => {
      const host = document.createElement('div');
      const markdown = new Markdown(host, { tokens: true });
      for (const piece of ['- a', ' **b', 'c** ', '\\n- `d', '`']) markdown.push(piece);
      markdown.flush();
      return [...host.querySelectorAll('.token')].map((node) => [Number(node.dataset.i), node.textContent]);
    })""")
    assert found == [[0, "a"], [1, " "], [1, "b"], [2, "c"], [3, "d"]]


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "[x](javascript:window.hacked=1)",
    "[x](JaVaScRiPt:window.hacked=1)",
    "[x](java\tscript:window.hacked=1) [y](\x01javascript:hacked=1)",
    "[x](data:text/html,<script>hacked=1</script>)",
    "[x](vbscript:hacked) [y](file:///etc/passwd) [z](//example.org)",
    "![x](https://example.org/track.png)",
    "![x](javascript:hacked=1)",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<svg onload=window.hacked=1>",
    "```html\n<script>window.hacked=1</script>\n```",
    "| <img src=x onerror=window.hacked=1> |\n|--|\n| <script>hacked=1</script> |",
    '[a"onmouseover="hacked=1](https://example.org/"onmouseover="hacked=1)',
    "<a href='javascript:hacked=1'>x</a> &lt;script&gt;",
    "</p></div><style>body { display: none }</style>",
    "\u202e[x](https://example.org)\u202d",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(modules: Any, text: str) -> None:
    found = modules.evaluate(
        """(text) => import('/web/markdown/render.js').then(({ render }) => {
          const host = document.createElement('div');
          document.body.append(host);
          render(host, text);
          const [all, links] = [[...host.querySelectorAll('*')], [...host.querySelectorAll('a')]];
          for (const link of links) link.addEventListener('click', (event) => event.preventDefault());
          for (const link of links) link.click();
          const attributes = all.flatMap((node) => [...node.attributes]);
          return {
            tags: all.map((node) => node.localName),
            handlers: attributes.filter(({ name }) => /^on|style/.test(name)).length,
            addresses: links.map((link) => link.protocol),
          };
        })""",
        text,
    )
    # The icon of the button that copies code is ours.
    assert not set(found["tags"]) & {"script", "img", "iframe", "style", "object", "embed", "form"}
    assert ("svg" in found["tags"]) == text.startswith("```") and found["handlers"] == 0
    assert set(found["addresses"]) <= {"https:", "http:", "mailto:"}
    modules.wait_for_timeout(20)
    assert modules.evaluate("window.hacked") is None


@pytest.mark.parametrize("mark", ["*", "**a", "_", "`", "[", "> ", "- ", "|", "~~x", "](", "1. ", "h", "https://", "#"])
def test_a_long_run_of_openers_takes_no_time(modules: Any, mark: str) -> None:
    milliseconds = modules.evaluate(
        """(mark) => import('/web/markdown/render.js').then(({ render }) => {
          const began = performance.now();
          render(document.createElement('div'), mark.repeat(20000));
          return performance.now() - began;
        })""",
        mark,
    )
    assert milliseconds < 2500
