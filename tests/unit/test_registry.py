"""Enabled drivers load; whatever is wrong with one stops with a sentence that names its distribution."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conetd import registry
from conetd.errors import DriverError, Invalid

Install = Callable[[str, str, str], None]

GOOD = """
from marshmallow import Schema
from conetd.driver import Driver, Lease

class Config(Schema):
    pass

class Good(Driver):
    config_schema = Config
    policy_schema = Config
    def allocate(self, network, attachment, held): return Lease({}, frozenset())
    def ensure_network(self, ctx): pass
    def remove_network(self, ctx): pass
    def attach(self, ctx): return {}
    def detach(self, ctx): pass
    def apply_policy(self, ctx): pass
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with one module on sys.path, as `pip install` would leave it."""

    def install(distribution: str, type_: str, source: str) -> None:
        place = tmp_path / distribution
        module = f"module_of_{distribution}"
        info = place / f"{distribution}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[conetd.drivers]\n{type_} = {module}:Good\n")
        (place / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(place)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def refusal(type_: str) -> str:
    with pytest.raises(DriverError) as refused:
        registry.load([type_])
    return str(refused.value)


def test_an_enabled_type_is_loaded_with_its_distribution(install: Install) -> None:
    install("acme", "acmenet", GOOD)

    loaded = registry.load(["acmenet"])["acmenet"]

    assert (type(loaded.driver).__name__, loaded.type, loaded.distribution, loaded.version) == (
        "Good",
        "acmenet",
        "acme",
        "1.2",
    )


def test_types_come_in_the_order_they_are_enabled_in(install: Install) -> None:
    install("acme", "acmenet", GOOD)
    install("zeta", "zetanet", GOOD)

    assert list(registry.load(["zetanet", "acmenet"])) == ["zetanet", "acmenet"]


def test_a_type_that_is_not_enabled_is_not_imported(install: Install) -> None:
    install("acme", "acmenet", GOOD)
    install("broken", "brokennet", "raise RuntimeError('imported')")

    assert list(registry.load(["acmenet"])) == ["acmenet"]


def test_what_is_installed_is_listed_without_importing_it(install: Install) -> None:
    install("broken", "brokennet", "raise RuntimeError('imported')")

    found = [one for one in registry.installed() if one.type == "brokennet"]

    assert found == [registry.Installed("brokennet", "broken", "1.2", "module_of_broken:Good")]


def test_a_missing_type_is_refused_with_its_place_in_the_settings(install: Install) -> None:
    install("acme", "acmenet", GOOD)

    with pytest.raises(Invalid, match=r'network type "nonet" is not installed \(installed: .*acmenet') as refused:
        registry.load(["acmenet", "nonet"])

    assert list(refused.value.fields) == ["drivers[1]"]


def test_a_type_enabled_twice_is_refused(install: Install) -> None:
    install("acme", "acmenet", GOOD)

    with pytest.raises(Invalid, match='"acmenet" is listed twice'):
        registry.load(["acmenet", "acmenet"])


def test_a_type_installed_twice_is_refused_naming_both_also_when_others_stand_between(install: Install) -> None:
    install("acme", "acmenet", GOOD)
    install("between", "bnet", GOOD)
    install("copycat", "acmenet", GOOD)

    assert "installed twice, by distribution acme 1.2 and distribution copycat 1.2" in refusal("acmenet")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("assert False, 'sad'", "cannot be imported: AssertionError: sad"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("", "cannot be imported: AttributeError"),
        ("class Good: pass", "is no driver: module_of_acme:Good is not a subclass"),
        ("Good = 5", "is no driver"),
        (GOOD + "    api_version = 2", "has api_version 2, and this conetd needs 1"),
        (GOOD.replace("policy_schema = Config", ""), "lacks policy_schema"),
        (GOOD.replace("config_schema = Config", "config_schema = dict"), "lacks config_schema"),
        (GOOD.replace("def detach", "def dettach"), "cannot be instantiated: TypeError: Can't instantiate abstract"),
    ],
)
def test_an_unusable_driver_is_refused_in_one_sentence_naming_its_distribution(
    install: Install, source: str, reason: str
) -> None:
    install("acme", "acmenet", source)

    sentence = refusal("acmenet")

    assert sentence.startswith('network type "acmenet", from distribution acme 1.2, ')
    assert reason in sentence
    assert "\n" not in sentence
