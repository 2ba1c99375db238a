"""What the documentation consists of: its pages, and the code blocks in them with what their fences say."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELL = ("sh", "console")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL)
_STAGE = re.compile(r"<!-- stage: (\w+) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, what else the fence says (`norun="why"`), its text and line."""

    page: str
    line: int
    language: str
    options: dict[str, str] = field(hash=False)
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A Markdown file. `stage` is where its shell blocks are run: see `stage.sh`."""

    name: str
    text: str
    stage: str
    blocks: tuple[Block, ...]

    @property
    def to_run(self) -> list[Block]:
        """The shell blocks that are run, in their order."""
        return [one for one in self.blocks if one.language in SHELL and "norun" not in one.options]


@cache
def pages() -> tuple[Page, ...]:
    """README and everything below docs/."""
    return tuple(page(str(path.relative_to(ROOT))) for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))])


@cache
def page(name: str) -> Page:
    """One page by its path in the tree."""
    text = (ROOT / name).read_text()
    stage = _STAGE.search(text)
    return Page(name, text, stage[1] if stage else "bare", tuple(_blocks(name, text)))


def _blocks(name: str, text: str) -> list[Block]:
    found = []
    for fence in _FENCE.finditer(text):
        language, _, rest = fence["info"].strip().partition(" ")
        options = dict(word.partition("=")[::2] for word in shlex.split(rest))
        indent = len(fence["indent"])
        body = "".join(line[indent:] if line.strip() else line for line in fence["text"].splitlines(keepends=True))
        found.append(Block(name, text.count("\n", 0, fence.start()) + 1, language, options, body))
    return found


def section(text: str, heading: str) -> str:
    """The part of a page below a heading, up to the next of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert match is not None, f"there is no heading {heading!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table_rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables whose first cell holds names in backticks: each such name, and the other cells."""
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        first, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|")))
        for name in re.findall(r"`([^`]+)`", first):
            rows.setdefault(name, others)
    return rows
