"""The keys of a cluster in etcd: each is read back as what it was made from, and strangers' keys as nothing."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conetd.cluster.keys import Key, Keys, Kind
from conetd.model import IDENTITY_MAX

KEYS = Keys("/conetd")
_LETTERS = string.ascii_letters + string.digits
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
HANDLES = st.text(_LETTERS + "._:@-", min_size=1, max_size=255).filter(lambda text: text not in (".", ".."))
DIGESTS = st.text("0123456789abcdef", min_size=1, max_size=64)
CLAIMS = st.text(_LETTERS + "/:._-", min_size=1) | st.text(min_size=1)
NUMBERS = st.integers(1, IDENTITY_MAX)

ANY_KEY = st.one_of(
    st.builds(Key, st.sampled_from([Kind.NETWORK, Kind.NEXT]), network=NAMES),
    st.builds(Key, st.just(Kind.HOST), host=NAMES),
    st.builds(Key, st.sampled_from([Kind.LEASE, Kind.ASK]), network=NAMES, host=NAMES),
    st.builds(Key, st.just(Kind.CLAIM), network=NAMES, name=CLAIMS),
    st.builds(Key, st.just(Kind.IDENTITY), network=NAMES, number=NUMBERS),
    st.builds(Key, st.just(Kind.IDENTITY_OF), network=NAMES, name=DIGESTS),
    st.builds(Key, st.sampled_from([Kind.USE, Kind.ADDRESSES]), network=NAMES, number=NUMBERS, host=NAMES),
    st.builds(Key, st.just(Kind.POLICY), network=NAMES, name=HANDLES),
)


@given(ANY_KEY)
def test_a_key_is_read_back_as_what_it_was_made_from(key: Key) -> None:
    assert KEYS.parse(KEYS.key(key)) == key


@given(st.lists(st.sampled_from(["", "/", "a", "0", "7", "..", *Kind])).map("/".join))
def test_what_is_read_makes_the_same_key_again(text: str) -> None:
    read = KEYS.parse(f"/conetd/{text}")
    assert read is None or KEYS.key(read) == f"/conetd/{text}"


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (KEYS.network("blue"), "/conetd/networks/blue"),
        (KEYS.host("h1"), "/conetd/hosts/h1"),
        (KEYS.lease("blue", "h1"), "/conetd/leases/blue/h1"),
        (KEYS.claim("blue", "subnet:10.1.3.0/24"), "/conetd/claims/blue/subnet:10.1.3.0/24"),
        (KEYS.identity("blue", 7), "/conetd/identities/blue/7"),
        (KEYS.identity_of("blue", "abc"), "/conetd/identity-of/blue/abc"),
        (KEYS.next("blue"), "/conetd/next/blue"),
        (KEYS.use("blue", 7, "h1"), "/conetd/uses/blue/7/h1"),
        (KEYS.ask("blue", "h1"), "/conetd/asks/blue/h1"),
        (KEYS.addresses("blue", 7, "h1"), "/conetd/addresses/blue/7/h1"),
        (KEYS.policy("blue", "web:1"), "/conetd/policies/blue/web:1"),
    ],
)
def test_each_kind_has_its_place_below_the_prefix(made: str, wanted: str) -> None:
    assert made == wanted


@pytest.mark.parametrize(
    "key",
    [
        "/other/networks/blue",
        "/conetd",
        "/conetd/",
        "/conetd/networks",
        "/conetd/networks/",
        "/conetd/networks/blue/more",
        "/conetd/strange/blue",
        "/conetd/leases/blue",
        "/conetd/leases/blue/h1/more",
        "/conetd/claims/blue/",
        "/conetd/identities/blue/0",
        "/conetd/identities/blue/07",
        "/conetd/identities/blue/65536",
        "/conetd/identities/blue/\u0667",
        "/conetd/uses/blue/seven/h1",
        "/conetd/policies/blue/..",
        "/conetd2/networks/blue",
    ],
)
def test_a_strangers_key_is_read_as_nothing(key: str) -> None:
    assert KEYS.parse(key) is None


@pytest.mark.parametrize(
    ("start", "key"),
    [
        (KEYS.all, KEYS.network("blue")),
        (KEYS.below(Kind.LEASE), KEYS.lease("blue", "h1")),
        (KEYS.below(Kind.LEASE, "blue"), KEYS.lease("blue", "h1")),
        (KEYS.below(Kind.USE, "blue", 7), KEYS.use("blue", 7, "h1")),
    ],
)
def test_what_is_listed_below_has_the_key(start: str, key: str) -> None:
    assert key.startswith(start)


def test_a_network_whose_name_begins_as_anothers_is_not_below_it() -> None:
    assert not KEYS.lease("blue2", "h1").startswith(KEYS.below(Kind.LEASE, "blue"))


def test_a_slash_at_the_end_of_the_prefix_makes_no_difference() -> None:
    assert Keys("/conetd/").network("blue") == KEYS.network("blue")
