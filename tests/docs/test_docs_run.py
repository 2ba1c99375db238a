"""Whether what README and docs/ tell to type works and prints what they show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from docmatch import matches
from docpages import SHELL, Page, pages
from docshell import Shell, steps
from pytest_netns import missing

RUN = [page for page in pages() if page.to_run]
# How many blocks of each page say `norun`, so that none slips in.
NOT_RUN = {
    "README.md": 2,  # make demo, make test, make bench
    "docs/explanation/performance.md": 1,  # make bench
    "docs/how-to/connect-hosts-with-vxlan.md": 1,  # installing etcd
    "docs/how-to/change-the-filter-backend.md": 1,  # pip and apt-get
    "docs/how-to/hook-into-runc-and-podman.md": 2,  # runc is what the demo does; podman
    "docs/how-to/put-conetd-behind-guardian.md": 1,  # gdn
    "docs/how-to/run-under-systemd.md": 4,
    "docs/how-to/write-a-driver.md": 2,  # installing the example driver
}


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


def test_what_is_not_run_is_known_and_says_why() -> None:
    not_run = [one for page in pages() for one in page.blocks if one.language in SHELL and "norun" in one.options]
    listed = "\n".join(f"{one}: {one.options['norun']}" for one in not_run)

    assert all(len(one.options["norun"]) > 10 for one in not_run), listed
    assert Counter(one.page for one in not_run) == NOT_RUN, listed
