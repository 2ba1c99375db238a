"""What was measured, as one markdown page: tables of figures, and lines that say which ratios are as they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


def p95(samples: Sequence[float]) -> float:
    """The value that one sample in twenty exceeds."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]


def number(value: float | None) -> str:
    """A figure as it is printed: three digits or so; a dash for one there is not."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass(slots=True)
class Table:
    """One table with its heading and the notes under it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, *cells: str | float | None) -> None:
        """Add a row; figures are formatted."""
        assert len(cells) == len(self.columns), cells
        self.rows.append(tuple(one if isinstance(one, str) else number(one) for one in cells))

    def note(self, text: str) -> None:
        """Add a note."""
        self.notes.append(text)

    def markdown(self) -> str:
        """The table, aligned for those who read it as text."""
        every = [self.columns, *self.rows]
        widths = [max(len(row[place]) for row in every) for place in range(len(self.columns))]
        lines = [_line(row, widths) for row in every]
        rule = [("-" * width) if place == 0 else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
        lines.insert(1, _line(rule, widths))
        return "\n".join([f"## {self.title}", "", *lines, *(f"\n{note}" for note in self.notes)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if place == 0 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


@dataclass(frozen=True, slots=True)
class Criterion:
    """A ratio, or something that holds or not, and what it should be."""

    what: str
    limit: str
    found: str
    passed: bool


@dataclass(slots=True)
class Report:
    """The page."""

    heading: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    criteria: list[Criterion] = field(default_factory=list)

    def table(self, title: str, *columns: str) -> Table:
        """Begin a table."""
        made = Table(title, columns)
        self.tables.append(made)
        return made

    def at_most(self, what: str, value: float, limit: float, unit: str = "x") -> None:
        """What should not be more than the limit."""
        self.criteria.append(Criterion(what, f"<= {limit:g} {unit}", f"{number(value)} {unit}", value <= limit))

    def at_least(self, what: str, value: float, limit: float, unit: str = "x") -> None:
        """What should not be less than the limit."""
        self.criteria.append(Criterion(what, f">= {limit:g} {unit}", f"{number(value)} {unit}", value >= limit))

    def holds(self, what: str, passed: bool, found: str) -> None:
        """What should be so."""
        self.criteria.append(Criterion(what, "holds", found, passed))

    def markdown(self) -> str:
        """The whole page."""
        parts = ["# What conetd costs", *self.heading, *(table.markdown() for table in self.tables)]
        if self.criteria:
            verdicts = Table("What should hold", ("what", "wanted", "found", ""))
            for one in self.criteria:
                verdicts.row(one.what, one.limit, one.found, "PASS" if one.passed else "FAIL")
            parts.append(verdicts.markdown())
        return "\n\n".join(parts) + "\n"


def middle(samples: Sequence[float]) -> float:
    """The median."""
    return median(samples)
