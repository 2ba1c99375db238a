"""Whether what README and docs/ tell to type works and prints what they show."""

from __future__ import annotations

from pathlib import Path

import pytest
from docmatch import matches
from docpages import SHELL, Page, pages
from docshell import Shell, steps
from pytest_netns import missing

RUN = [page for page in pages() if page.to_run]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_page_does_what_it_says(page: Page, tmp_path: Path) -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    shell = Shell(tmp_path, page.stage)
    try:
        for block in page.to_run:
            for step in steps(block):
                status, printed = shell.type(step.text, strictly=block.language == "sh")
                where = f"{block}: {step.text}\nexit status {status}, printed:\n{printed}\n"
                assert status == 0 or step.printed is not None, where
                if step.printed is not None:
                    assert matches(printed, step.printed), f"{where}shown:\n{step.printed}"
    finally:
        shell.close()


def test_what_is_not_run_says_why() -> None:
    """`norun` needs a reason, and each such block is one of those counted here, so that none slips in."""
    not_run = [
        block for page in pages() for block in page.blocks if block.language in SHELL and "norun" in block.options
    ]
    assert all(len(block.options["norun"]) >= 10 for block in not_run)
    count: dict[str, int] = {}
    for block in not_run:
        count[block.page] = count.get(block.page, 0) + 1
    assert count == NOT_RUN, "\n".join(f"{block}: {block.options['norun']}" for block in not_run)


NOT_RUN: dict[str, int] = {}
