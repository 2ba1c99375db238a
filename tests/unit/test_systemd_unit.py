"""The systemd files in contrib: accepted by systemd, and in step with the daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conetd.settings import DEFAULT_GROUP, Settings

CONTRIB = Path(__file__).parents[2] / "contrib" / "systemd"


def unit() -> dict[str, list[str]]:
    """Each key of the unit with its values in order, comments and sections aside."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"(?m)^(\w+)=(.*)$", (CONTRIB / "conetd.service").read_text()):
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "conetd.service"
    # conetd need not be installed where the tests run
    copy.write_text((CONTRIB / "conetd.service").read_text().replace("/usr/bin/conetd", "/bin/true"))
    result = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_unit_makes_the_directories_of_the_default_settings() -> None:
    defaults = Settings()
    keys = unit()
    assert defaults.state_dir == Path("/var/lib") / keys["StateDirectory"][0]
    assert defaults.public_socket.parent == Path("/run") / keys["RuntimeDirectory"][0]
    assert defaults.private_socket.parent == Path("/run") / keys["RuntimeDirectory"][0]


def test_the_unit_waits_longer_for_the_end_than_requests_may_take() -> None:
    assert float(unit()["TimeoutStopSec"][0]) > Settings().driver_timeout + 5


def test_the_group_made_is_the_default_one() -> None:
    assert f"\ng {DEFAULT_GROUP} -\n" in (CONTRIB / "conetd.sysusers").read_text()
