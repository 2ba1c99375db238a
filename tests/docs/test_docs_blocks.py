"""Whether what README and docs/ show beside commands is what it says: excerpts, settings, documents, links."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conetd_bridge import BridgeDriver
from conetd_vxlan import VxlanDriver
from docpages import ROOT, SHELL, Block, Page, pages

from conetd import documents, settings
from conetd.check import check
from conetd.driver import Driver
from conetd.service.documents import network

BLOCKS = [block for page in pages() for block in page.blocks]
DRIVERS: dict[str, type[Driver[Any, Any]]] = {"": BridgeDriver, "vxlan": VxlanDriver}
CONTENT = {"python", "toml", "json", "text", *SHELL}


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("block", [block for block in BLOCKS if "from" in block.options], ids=str)
def test_an_excerpt_stands_in_its_file(block: Block) -> None:
    assert block.text in (ROOT / block.options["from"]).read_text()


def test_python_can_be_parsed() -> None:
    for block in of("python"):
        if "from" not in block.options:
            ast.parse(block.text, filename=str(block))


@pytest.mark.parametrize("block", [block for block in of("toml") if "from" not in block.options], ids=str)
def test_settings_are_right(block: Block) -> None:
    document = tomllib.loads(block.text)
    if "norun" not in block.options:
        check(settings.parse(document))


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_a_document_is_right(block: Block) -> None:
    document = json.loads(block.text)
    if "network" in block.options:
        documents.load(DRIVERS[block.options["network"]].config_schema(), network(document)["config"])
    if "policy" in block.options:
        documents.load(DRIVERS[block.options["policy"]].policy_schema(), document)


def test_a_block_is_in_a_language_that_is_checked() -> None:
    assert [str(block) for block in BLOCKS if block.language not in CONTENT] == []


def test_a_page_has_no_fence_that_is_not_seen() -> None:
    """A fence that does not close, or is indented otherwise than its end, would hide what stands in it."""
    for page in pages():
        fences = len(re.findall(r"^ *```", page.text, re.MULTILINE))
        assert fences == 2 * len(page.blocks), page.name


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_link_leads_somewhere(page: Page) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.text, flags=re.DOTALL)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page.name).parent / path if path else ROOT / page.name
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_can_be_found_from_the_index(page: Page) -> None:
    if page.name in ("README.md", "docs/README.md"):
        return
    index = (ROOT / "docs" / "README.md").read_text()
    assert f"({Path(page.name).relative_to('docs')})" in index


def _anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
