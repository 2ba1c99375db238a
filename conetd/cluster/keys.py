"""Which key of etcd says what: the layout below the cluster's prefix, and how a key is read back."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from conetd.errors import Invalid
from conetd.model import IDENTITY_MAX, check_handle
from conetd.model.names import NETWORK_NAME

_NUMBER = re.compile(r"[1-9][0-9]{0,4}")


class Kind(enum.StrEnum):
    """What a key is about, by the first part of its name."""

    NETWORK = "networks"
    """networks/NETWORK: a network that all hosts have."""
    HOST = "hosts"
    """hosts/HOST: a living host; hangs on its lease."""
    LEASE = "leases"
    """leases/NETWORK/HOST: what a host got on a network."""
    CLAIM = "claims"
    """claims/NETWORK/CLAIM: who holds what only one host may have."""
    IDENTITY = "identities"
    """identities/NETWORK/NUMBER: the labels, or the handle, of an identity."""
    IDENTITY_OF = "identity-of"
    """identity-of/NETWORK/DIGEST: the number of the identity of a label set, or of a handle."""
    NEXT = "next"
    """next/NETWORK: the identity to try next."""
    USE = "uses"
    """uses/NETWORK/NUMBER/HOST: a host has containers of an identity."""
    ASK = "asks"
    """asks/NETWORK/HOST: the identities whose addresses a host needs to know."""
    ADDRESSES = "addresses"
    """addresses/NETWORK/NUMBER/HOST: the addresses of a host's containers of an identity."""
    ORIGIN = "origin"
    """origin: a text of its own for each etcd, by which hosts see that it is another one, or has lost its data."""
    POLICY = "policies"
    """policies/NETWORK/HANDLE: the policy of a container, wherever it runs."""


_PARTS: dict[Kind, tuple[str, ...]] = {
    Kind.NETWORK: ("network",),
    Kind.HOST: ("host",),
    Kind.LEASE: ("network", "host"),
    Kind.CLAIM: ("network", "name"),
    Kind.IDENTITY: ("network", "number"),
    Kind.IDENTITY_OF: ("network", "name"),
    Kind.NEXT: ("network",),
    Kind.USE: ("network", "number", "host"),
    Kind.ASK: ("network", "host"),
    Kind.ADDRESSES: ("network", "number", "host"),
    Kind.ORIGIN: (),
    Kind.POLICY: ("network", "name"),
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key, read: `name` is the claim, the digest or the handle. What its kind does not have is empty, or 0."""

    kind: Kind
    network: str = ""
    name: str = ""
    host: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the cluster whose keys all begin with `prefix` and a slash."""

    prefix: str

    @property
    def all(self) -> str:
        """What every key of the cluster begins with."""
        return f"{self.prefix.rstrip('/')}/"

    def below(self, kind: Kind, network: str = "", number: int = 0) -> str:
        """What every key of the kind begins with, or of the kind and the network, or the identity of the network."""
        parts = [str(kind), *([network] if network else []), *([str(number)] if number else [])]
        return f"{self.all}{'/'.join(parts)}/"

    def key(self, key: Key) -> str:
        """The key in full; `parse` reads it back."""
        return "/".join([f"{self.all}{key.kind}", *(str(getattr(key, part)) for part in _PARTS[key.kind])])

    def network(self, network: str) -> str:
        """The key of a network."""
        return self.key(Key(Kind.NETWORK, network))

    def host(self, host: str) -> str:
        """The key of a host."""
        return self.key(Key(Kind.HOST, host=host))

    def lease(self, network: str, host: str) -> str:
        """The key of what a host got on a network."""
        return self.key(Key(Kind.LEASE, network, host=host))

    def claim(self, network: str, claim: str) -> str:
        """The key of what only one host of a network may hold, such as `subnet:10.1.3.0/24`."""
        return self.key(Key(Kind.CLAIM, network, claim))

    def identity(self, network: str, number: int) -> str:
        """The key of an identity."""
        return self.key(Key(Kind.IDENTITY, network, number=number))

    def identity_of(self, network: str, digest: str) -> str:
        """The key of the number of an identity, given a digest of what it stands for."""
        return self.key(Key(Kind.IDENTITY_OF, network, digest))

    def next(self, network: str) -> str:
        """The key of the identity to try next."""
        return self.key(Key(Kind.NEXT, network))

    def use(self, network: str, number: int, host: str) -> str:
        """The key that says a host has containers of an identity."""
        return self.key(Key(Kind.USE, network, host=host, number=number))

    def ask(self, network: str, host: str) -> str:
        """The key of what a host wants to know the addresses of."""
        return self.key(Key(Kind.ASK, network, host=host))

    def addresses(self, network: str, number: int, host: str) -> str:
        """The key of the addresses of a host's containers of an identity."""
        return self.key(Key(Kind.ADDRESSES, network, host=host, number=number))

    def policy(self, network: str, handle: str) -> str:
        """The key of the policy of a container."""
        return self.key(Key(Kind.POLICY, network, handle))

    def parse(self, key: str) -> Key | None:
        """What the key says; None for one that `key` cannot have made."""
        if not key.startswith(self.all):
            return None
        first, *rest = key[len(self.all) :].split("/", 1)
        try:
            kind = Kind(first)
        except ValueError:
            return None
        parts = _PARTS[kind]
        texts = rest[0].split("/", len(parts) - 1) if rest else []  # only the last part may have slashes of its own
        if len(texts) != len(parts) or not all(_possible(kind, *pair) for pair in zip(parts, texts, strict=True)):
            return None
        fields = dict(zip(parts, texts, strict=True))
        number = int(fields.pop("number", "0"))
        return Key(kind, number=number, **fields)


def _possible(kind: Kind, part: str, text: str) -> bool:
    if part == "number":
        return bool(_NUMBER.fullmatch(text)) and int(text) <= IDENTITY_MAX
    if part != "name":
        return bool(NETWORK_NAME.fullmatch(text))  # hosts are named as networks are
    if kind is Kind.POLICY:
        try:
            check_handle(text)
        except Invalid:
            return False
    return text != ""
