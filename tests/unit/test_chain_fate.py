"""What becomes of a packet for which no rule with conditions speaks."""

from __future__ import annotations

import pytest

from conetd.kernel.foreign.fate import End, Kind, Verdict, fate

ACCEPT, DROP, REJECT, RETURN = (Verdict(kind) for kind in (Kind.ACCEPT, Kind.DROP, Kind.REJECT, Kind.RETURN))


def jump(chain: str) -> Verdict:
    return Verdict(Kind.JUMP, chain)


def goto(chain: str) -> Verdict:
    return Verdict(Kind.GOTO, chain)


@pytest.mark.parametrize(
    ("chains", "expected"),
    [
        pytest.param({"base": []}, None, id="no rule: the policy"),
        pytest.param({"base": [DROP]}, End(Kind.DROP, "base"), id="dropped"),
        pytest.param({"base": [ACCEPT, DROP]}, End(Kind.ACCEPT, "base"), id="accepted before it could be dropped"),
        pytest.param({"base": [RETURN, DROP]}, None, id="a return from the base chain: the policy"),
        pytest.param({"base": [jump("a")], "a": [REJECT]}, End(Kind.REJECT, "a"), id="rejected one chain further"),
        pytest.param({"base": [jump("a"), DROP], "a": []}, End(Kind.DROP, "base"), id="back from a jump"),
        pytest.param({"base": [jump("a"), DROP], "a": [RETURN]}, End(Kind.DROP, "base"), id="returned from a jump"),
        pytest.param({"base": [goto("a"), DROP], "a": []}, None, id="a goto does not come back"),
        pytest.param(
            {"base": [jump("a"), DROP], "a": [goto("b"), REJECT], "b": []},
            End(Kind.DROP, "base"),
            id="a goto comes back to where the last jump was",
        ),
    ],
)
def test_the_first_unconditional_verdict_decides(chains: dict[str, list[Verdict]], expected: End | None) -> None:
    assert fate(chains.__getitem__, "base") == expected
