"""What every run says at its end."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell why tests had to be asked again: a test that passes sometimes is a fault as well."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"asked again: {report.nodeid}")
        terminalreporter.line(report.longreprtext)
