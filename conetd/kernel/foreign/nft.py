"""Which nftables tables of others have chains on the forward hook, and which of their rules have no conditions."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import partial

from conetd.kernel.foreign.fate import BaseChain, Kind, Ruleset, Verdict
from conetd.kernel.netlink import NLM_F_DUMP, Netlink, attributes, message, text

OURS = "conetd"
# linux/netfilter/nf_tables.h
_SUBSYSTEM = 10 << 8
_GETTABLE, _GETCHAIN, _GETRULE = _SUBSYSTEM | 1, _SUBSYSTEM | 4, _SUBSYSTEM | 7
_TABLE_NAME, _TABLE_FLAGS, _DORMANT = 1, 2, 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_HOOK_NUMBER = 1
_FORWARD = 2  # NF_INET_FORWARD and NF_BR_FORWARD alike
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_IMMEDIATE_DATA, _DATA_VERDICT = 2, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_TARGET_NAME = _MATCH_NAME = 1
_NF_DROP = 0
_CODES = {0: Kind.DROP, 1: Kind.ACCEPT, -3: Kind.JUMP, -4: Kind.GOTO, -5: Kind.RETURN}
_TARGETS = {"REJECT": Kind.REJECT, "DROP": Kind.DROP, "ACCEPT": Kind.ACCEPT}
_FAMILIES = {1: "inet", 2: "ip", 7: "bridge", 10: "ip6"}


def nft_rulesets(netlink: Netlink) -> Iterator[Ruleset]:
    """The tables of others with chains on the forward hook. Rules are read by `netlink` as they are asked for."""
    asleep = set()
    for _kind, payload in netlink.dump(_request(_GETTABLE, 0)):
        found = dict(attributes(payload, 4))
        if int.from_bytes(found.get(_TABLE_FLAGS, b""), "big") & _DORMANT:
            asleep.add((payload[0], _string(found[_TABLE_NAME])))
    bases: dict[tuple[int, str], list[BaseChain]] = {}
    for _kind, payload in netlink.dump(_request(_GETCHAIN, 0)):
        found = dict(attributes(payload, 4))
        table = payload[0], _string(found[_CHAIN_TABLE])
        if payload[0] not in _FAMILIES or table in asleep or table[1] == OURS or _CHAIN_HOOK not in found:
            continue
        hook = dict(attributes(found[_CHAIN_HOOK]))
        if int.from_bytes(hook[_HOOK_NUMBER], "big") == _FORWARD:
            drops = _CHAIN_POLICY in found and int.from_bytes(found[_CHAIN_POLICY], "big") == _NF_DROP
            bases.setdefault(table, []).append(BaseChain(_string(found[_CHAIN_NAME]), drops))
    for table, chains in bases.items():
        yield Ruleset(_FAMILIES[table[0]], table[1], chains, partial(_verdicts, netlink, *table))


def _request(kind: int, family: int, payload: bytes = b"") -> bytes:
    return message(kind, NLM_F_DUMP, bytes([family, 0, 0, 0]) + payload)


def _string(value: bytes | memoryview) -> str:
    return bytes(value).rstrip(b"\0").decode(errors="replace")


def _verdicts(netlink: Netlink, family: int, table: str, chain: str) -> Sequence[Verdict]:
    wanted = text(_RULE_TABLE, table) + text(_RULE_CHAIN, chain)
    found = []
    for _kind, payload in netlink.dump(_request(_GETRULE, family, wanted)):
        rule = dict(attributes(payload, 4))
        # checked again: kernels before 4.7 do not look at the names in the request
        if (_string(rule[_RULE_TABLE]), _string(rule[_RULE_CHAIN])) == (table, chain):
            verdict = _unconditional(rule.get(_RULE_EXPRESSIONS, memoryview(b"")))
            if verdict is not None:
                found.append(verdict)
    return found


def _unconditional(expressions: memoryview) -> Verdict | None:
    """The verdict of a rule without conditions; None for any other rule."""
    for _kind, expression in attributes(expressions):
        parts = dict(attributes(expression))
        name = _string(parts[_EXPRESSION_NAME])
        data = dict(attributes(parts.get(_EXPRESSION_DATA, memoryview(b""))))
        if name == "immediate":
            value = dict(attributes(data[_IMMEDIATE_DATA]))
            if _DATA_VERDICT in value:
                return _verdict(value[_DATA_VERDICT])
        elif name == "reject":
            return Verdict(Kind.REJECT)
        elif name == "target":
            kind = _TARGETS.get(_string(data[_TARGET_NAME]))
            if kind is not None:
                return Verdict(kind)
        elif name not in ("counter", "log") and not (name == "match" and _string(data[_MATCH_NAME]) == "comment"):
            return None
    return None


def _verdict(value: memoryview) -> Verdict | None:
    parts = dict(attributes(value))
    (code,) = struct.unpack(">i", parts[_VERDICT_CODE])
    kind = _CODES.get(code)
    return None if kind is None else Verdict(kind, _string(parts.get(_VERDICT_CHAIN, b"")))
