"""What the documentation says of the code is held to the code: every key, every link, every recipe, every name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from jielong.config import Settings, plain, to_toml
from jielong.recipe import STAGE_SETTINGS, parse_recipe
from jielong.recipe.preferences import PolicySettings
from jielong.recipe.settings import (
    DataSettings,
    Learning,
    LoraSettings,
    Optimisation,
    RunSettings,
    SourceSettings,
    WorldSettings,
)
from jielong.recipe.shape import Shape, TranslatorSettings
from jielong.report.page import HIGHLIGHTS
from jielong.search.study import load_study, override, recipe_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
PAGES = (*READMES, *sorted((ROOT / "docs").glob("*.md")))

# heading of docs/recipes.md -> the settings explained under it
TABLES: dict[str, type[Settings]] = {
    "[run]": RunSettings,
    "[data]": DataSettings,
    "[data.world]": WorldSettings,
    "[data.sources.NAME]": SourceSettings,
    "Training": Optimisation,
    "Learning from rewards": PolicySettings,
    "[STAGE.model]": Shape,
    "[translate.model]": TranslatorSettings,
    "[STAGE.lora]": LoraSettings,
    **{f"[{kind}]": settings for kind, settings in STAGE_SETTINGS.items()},
}
# Defaults that words say better than a value does.
IN_WORDS = {("[run]", "name"): "the file's name"}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """The text without fenced blocks, whose lines are neither headings nor links."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def recipe_rows() -> dict[str, dict[str, str]]:
    """Heading of docs/recipes.md -> key -> the default that its row gives."""
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^## ", without_code(text_of(ROOT / "docs" / "recipes.md")), flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        _, _, table = body.partition("| key | type | default | meaning |\n")
        rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| .*\|$", table.partition("\n\n")[0], flags=re.MULTILINE)
        found[heading.strip("`")] = dict(rows)
    return found


ROWS = recipe_rows()


def own_fields(settings: type[Settings]) -> dict[str, Any]:
    """The fields of a table, but for those that all training stages share: they are explained once."""
    all_bases = (Learning, Optimisation, PolicySettings, Shape)
    bases = [base for base in all_bases if issubclass(settings, base) and settings not in all_bases]
    shared = {name for base in bases for name in base.model_fields}
    return {name: field for name, field in settings.model_fields.items() if name not in shared}


def shown_default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "*required*"
    if field.default is None:
        return "–"
    value = plain(field.default)
    return "`{}`" if value == {} else f"`{to_toml({'x': value}).removeprefix('x = ').strip()}`"


@pytest.mark.parametrize("heading", TABLES)
def test_every_setting_is_documented_with_its_default(heading: str) -> None:
    expected = {name: shown_default(field) for name, field in own_fields(TABLES[heading]).items()}
    expected |= {key: words for (table, key), words in IN_WORDS.items() if table == heading}
    assert ROWS[heading] == expected


def test_every_settings_class_is_looked_at() -> None:
    classes = [RunSettings, DataSettings]
    for settings in classes:
        for field in settings.model_fields.values():
            named = re.findall(r"\b(\w+Settings)\b", str(field.annotation))
            assert set(named) <= {table.__name__ for table in TABLES.values()}
    assert set(STAGE_SETTINGS.values()) <= set(TABLES.values())


def headings(path: Path) -> list[str]:
    """The levels of a page's headings, in order."""
    return re.findall(r"^(#+) ", without_code(text_of(path)), flags=re.MULTILINE)


def markers(path: Path) -> list[str]:
    return re.findall(r"<!-- (\w+:[\w.]+) -->", text_of(path))


def test_both_readmes_have_the_same_shape() -> None:
    english, chinese = READMES
    assert headings(english) == headings(chinese)
    assert markers(english) == markers(chinese)
    assert code_blocks(english, "toml") == code_blocks(chinese, "toml")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(path)))
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert not [link for link in local if not (path.parent / link).exists()]


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(path), flags=re.DOTALL | re.MULTILINE)


def test_whole_recipes_parse(tmp_path: Path) -> None:
    blocks = [(path.name, block) for path in PAGES for block in code_blocks(path, "toml")]
    whole = [(name, block) for name, block in blocks if set(tomllib.loads(block)) - {"run", "data"}]
    assert {"README.md", "README.zh.md", "recipes.md"} <= {name for name, _ in whole}
    for _, block in whole:
        (tmp_path / "mine.toml").write_text(block, encoding="utf-8")
        studies = {"search", "scaling"} & set(tomllib.loads(block))  # not a recipe: it names one
        if studies:
            assert load_study(tmp_path / "mine.toml", studies.pop()).names
        else:
            assert parse_recipe(tmp_path / "mine.toml").stages


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "studies").glob("*.toml")), ids=lambda path: path.name)
def test_shipped_studies_name_recipes_that_take_their_settings(path: Path) -> None:
    (kind,) = {"search", "scaling"} & set(tomllib.loads(text_of(path)))
    study = load_study(path, kind)
    values = study.points() or [
        {name: span.low if span.choices is None else span.choices[0] for name, span in study.space.items()}
    ]
    for point in values:
        changed = [override(name, value) for name, value in point.items()]
        parse_recipe(recipe_path(study, path), [*study.common.overrides, *changed])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_files_and_tests_exist(path: Path) -> None:
    text = without_code(text_of(path))
    files = re.findall(r"`((?:\w+/)*\w+\.py)`", text)
    package = ROOT / "src" / "jielong"
    assert not [file for file in files if not any((root / file).exists() for root in (ROOT, package))]
    defined = {
        name for test in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", text_of(test))
    }
    named = re.findall(r"`(test_\w+)`", text)
    assert not [name for name in named if name not in defined]


def test_figures_of_the_page_are_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", text_of(ROOT / "docs" / "figures.md"), flags=re.MULTILINE))
    assert {name for names in HIGHLIGHTS.values() for name in names} <= explained


def test_figures_that_ci_asks_for_are_explained() -> None:
    """.ci/run lists what report.json must hold."""
    listed = re.search(r"^FIGURES = (\{.*?^\})", text_of(ROOT / ".ci" / "run"), flags=re.DOTALL | re.MULTILINE)
    assert listed is not None
    names = set(re.findall(r'"(\w+)"', listed.group(1))) - set(STAGE_SETTINGS)
    explained = set(re.findall(r"^\| `(\w+)` \|", text_of(ROOT / "docs" / "figures.md"), flags=re.MULTILINE))
    assert names <= explained


def test_readmes_have_the_places_for_measured_figures() -> None:
    expected = [
        "output:quickstart",
        "figures:quickstart",
        "samples:quickstart",
        "figures:shakespeare",
        "figures:novels",
    ]
    for path in READMES:
        assert markers(path) == expected
        assert len(text_of(path).splitlines()) >= 100
