"""The page's files, as text: their rules, their words, their weight, and how they are sent."""

from __future__ import annotations

import gzip
import re

import httpx2
import pytest

from jielong.serve.pages import FACES

from .conftest import WEB, Site

SCRIPTS = sorted(WEB.rglob("*.js"))
STYLES = sorted(WEB.rglob("*.css"))
MOST_LINES = 350
MOST_BYTES = 60_000  # on the wire, the first visit of a face
# Ways to make text into markup or code; nothing here needs one.
FORBIDDEN = re.compile(
    r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTMLUnsafe"
    r"|eval|EventSource|XMLHttpRequest)\b|new Function\b|import\(\s*[^'\"\s]|https?://(?!www\.w3\.org/2000/svg)"
)
ALLOWED = {"markdown/inline.js": {"https?://"}}  # what it looks for in a text


def names(path: object) -> str:
    return str(path).removeprefix(f"{WEB}/")


@pytest.mark.parametrize("path", SCRIPTS, ids=names)
def test_scripts_keep_the_rules(path: object) -> None:
    text = path.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert len(text.splitlines()) <= MOST_LINES
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("*", "/*", "//")))
    found = {match[0] for match in FORBIDDEN.finditer(code)} - ALLOWED.get(names(path), set())
    found = {one for one in found if not (names(path) == "markdown/inline.js" and one.startswith("http"))}
    assert not found, found
    assert text.startswith(("/**", "//", "import")), "says what it is"
    for module in re.findall(r"from '([^']+)'|import\('([^']+)'\)", text):
        target = next(filter(None, module))
        assert target.startswith("."), f"{target}: only our own files"
        assert (path.parent / target).resolve().is_file(), target  # type: ignore[attr-defined]


def words(face: str) -> dict[str, tuple[str, str]]:
    """Of one words.js: "shell", "inside", "training" or "play"."""
    text = (WEB / face / "words.js").read_text(encoding="utf-8")
    pair = r"(\w+): \['((?:[^'\\]|\\.)*)', '((?:[^'\\]|\\.)*)'\]"
    return {key: (english, chinese) for key, english, chinese in re.findall(pair, text)}


@pytest.mark.parametrize(("rooms", "own"), [
    (("shell", "chat", "markdown"), "shell"), (("inside",), "inside"), (("training",), "training"), (("play",), "play"),
])  # fmt: skip
def test_a_face_says_its_own_words_and_the_shells(rooms: tuple[str, ...], own: str) -> None:
    """What is loaded with another face alone is not there yet."""
    scripts = [path for room in rooms for path in (WEB / room).glob("*.js") if path.name not in ("words.js", "dom.js")]
    texts = [path.read_text(encoding="utf-8") for path in scripts]
    said = {key for text in texts for key in re.findall(r"(?:\bt|tLabel|tTitle|tHint): \[?'(\w+)'", text)}
    said |= {key for text in texts for key in re.findall(r"\bsay\('(\w+)'", text)}
    assert len(said) > 5 and not said - words(own).keys() - words("shell").keys()


def test_every_word_is_there_in_both_languages_and_used() -> None:
    tables = [words(face) for face in ("shell", "inside", "training", "play")]
    table = {key: pair for one in tables for key, pair in one.items()}
    assert len(table) > 200 and len(table) == sum(map(len, tables)), "a word is said twice"
    for key, (english, chinese) in table.items():
        assert english and chinese, key
        assert set(re.findall(r"\{\d\}", english)) == set(re.findall(r"\{\d\}", chinese)), key
        assert key in ("otherLanguage", "switchLanguage") or not re.search("[\u4e00-\u9fff]", english), key
    others = "\n".join(
        path.read_text(encoding="utf-8")
        for path in [*SCRIPTS, WEB / "index.html"]
        if path.name not in ("words.js", "dom.js")
    )
    used = set(re.findall(r"(?:\bt|tLabel|tTitle|tHint): \[?'(\w+)'", others)) | set(
        re.findall(r"\bsay\('(\w+)'", others)
    )
    used |= set(re.findall(r'data-t(?:-label|-title|-hint)?="(\w+)"', others))
    assert used <= set(table), f"not in words.js: {used - set(table)}"
    prefixes = tuple(re.findall(r"`(\w+_)\$\{", others))
    suffixes = tuple(re.findall(r"\}(_\w+)`", others))
    unused = {
        key
        for key in table
        if not re.search(rf"\b{key}\b", others) and not key.startswith(prefixes) and not key.endswith(suffixes)
    }
    assert not unused, f"nobody says: {unused}"


FIRST_LOAD = {"chat": "chat/chat.js", "inside": "inside/inside.js", "training": "training/training.js",
              "playground": "play/playground.js"}  # fmt: skip


def imported(name: str, found: set[str]) -> set[str]:
    """A script and all that it imports, by name; what is only loaded later, by import(...), is left out."""
    if name not in found:
        found.add(name)
        text = (WEB / name).read_text(encoding="utf-8")
        for target in re.findall(r"^(?:import|export)(?:[^;']*?from)? '([^']+)'", text, re.MULTILINE):
            imported(names((WEB / name).parent.joinpath(target).resolve()), found)
    return found


@pytest.mark.parametrize("face", FIRST_LOAD)
def test_a_first_visit_is_light(face: str) -> None:
    files = imported(FIRST_LOAD[face], imported("shell/app.js", {"shell/boot.js"}))
    files |= {"index.html", "icon.svg", "style/base.css", f"style/{face}.css"}
    sizes = {name: len(gzip.compress((WEB / name).read_bytes(), 9)) for name in files}
    assert len(sizes) > 10 and sum(sizes.values()) <= MOST_BYTES, sizes


def test_styles_load_nothing() -> None:
    for path in STYLES:
        text = path.read_text(encoding="utf-8")
        assert "@import" not in text and "url(" not in text, path


@pytest.mark.parametrize("path", FACES)
def test_every_face_is_the_shell_under_a_strict_policy(client: httpx2.Client, path: str) -> None:
    reply = client.get(path)
    policy = reply.headers["content-security-policy"]
    assert reply.status_code == 200 and "default-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<script>|<style|\son\w+=|style=", reply.text)


def test_files_are_packed_and_known_again(client: httpx2.Client) -> None:
    reply = client.get("/web/shell/app.js")
    assert reply.headers["content-encoding"] == "gzip" and reply.headers["content-type"].startswith("text/javascript")
    again = client.get("/web/shell/app.js", headers={"if-none-match": reply.headers["etag"]})
    assert again.status_code == 304 and not again.content
    plain = client.get("/web/shell/app.js", headers={"accept-encoding": "identity"})
    assert plain.text == reply.text and "content-encoding" not in plain.headers


@pytest.mark.parametrize(
    "path", ["/web/../pages.py", "/web/%2e%2e/pages.py", "/web//etc/passwd", "/web/", "/web/shell", "/web/x.js"]
)
def test_no_path_leads_out(client: httpx2.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_page_needs_no_key_but_everything_it_asks_for_does(site: Site) -> None:
    from jielong.serve.page.routes import page_routes
    from jielong.serve.security import is_public

    assert all(is_public(path) for path in FACES)
    paths = [route.path for route in page_routes(site.service, site.places, site.history)]
    assert len(paths) > 15 and all(path.startswith("/api/") and not is_public(path) for path in paths)
