"""What somebody gets who installs conetd: the packages, the command, and the hook as it stands in the tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*command, *arguments], check=True, timeout=120, env=os.environ | {"PIP_NO_INDEX": "1"})


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of its own with the wheel in it. Needs no network: it borrows the libraries of ours."""
    wheels, venv = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    python = venv / "bin" / "python"
    pip("--python", python, "install", "--no-deps", *wheels.glob("conetd-*.whl"))
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True, timeout=60)
    for library in Path(sysconfig.get_path("purelib")).iterdir():
        link = Path(theirs.stdout.strip(), library.name)
        # without our editable conetd, and what puts the tree on the path
        if "conetd" not in library.name and library.suffix != ".pth" and not link.exists():
            link.symlink_to(library)
    return venv


def test_the_hook_is_installed_unchanged_and_executable(installed: Path) -> None:
    hook = installed / "bin" / "conet-hook"
    assert hook.read_bytes() == (ROOT / "hook" / "conet-hook").read_bytes()
    assert os.access(hook, os.X_OK)


def test_the_installed_command_finds_the_drivers(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "bin" / "conetd"), "drivers"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [
        ["bridge", "conetd"],
        ["vxlan", "conetd"],
    ]


def test_the_installed_package_carries_the_stores_migrations(installed: Path, tmp_path: Path) -> None:
    query = "import conetd.store, pathlib; print(pathlib.Path(conetd.store.__file__).parent)"
    command = [str(installed / "bin" / "python"), "-I", "-c", query]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    store = Path(result.stdout.strip())
    assert store.is_relative_to(installed)
    wanted = {one.name for one in (ROOT / "conetd" / "store" / "migrations").iterdir() if one.suffix == ".sql"}
    assert {one.name for one in (store / "migrations").iterdir() if one.suffix == ".sql"} == wanted
