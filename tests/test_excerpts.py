"""Excerpts of the sources in the documentation are what the sources say now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyconv import excerpts


@pytest.mark.parametrize("page", excerpts.pages(), ids=lambda page: page.name)
def test_a_page_is_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert excerpts.filled(text) == text, "stale: make tables"
    assert text.count("<!-- excerpt ") == len(excerpts._EXCERPT.findall(text)), "an excerpt is malformed"


@pytest.mark.parametrize("page", excerpts.pages(), ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_of_three_renditions_has_excerpts_of_each() -> None:
    text = (excerpts.ROOT / "docs" / "three-renditions.md").read_text(encoding="utf-8")
    sources = set(re.findall(r"<!-- excerpt (\S+):", text))
    assert {Path(source).suffix for source in sources} >= {".py", ".cu", ".h"}


def test_a_stale_excerpt_is_filled_anew() -> None:
    head = '<!-- excerpt gemm/sum_splits.cu: from "Sum sum" until "out[i]" -->\n'.replace("Sum sum", "> sum")
    stale = f"before\n{head}```cpp\nold\n```\nafter\n"
    filled = excerpts.filled(stale)
    assert "old" not in filled
    assert "out[i] = narrow<T>(sum);\n```\nafter" in filled
    assert excerpts.filled(filled) == filled


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ("no such line", "^}", "0 lines hold 'no such line'"),
        ("split", "^}", r"\d+ lines hold 'split'"),
        ("out[i] = narrow", "no such line", "no line after 'out"),
    ],
)
def test_an_excerpt_that_is_not_there_is_an_error(first: str, last: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        excerpts.excerpt("gemm/sum_splits.cu", first, last)
