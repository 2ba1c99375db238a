"""What is said to etcd's gateway and what its answers mean, without an etcd."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conetd.cluster import messages
from conetd.cluster.answers import read_answer
from conetd.cluster.connections import Endpoint, Tls
from conetd.cluster.errors import Compacted, EtcdRefused, LeaseGone, MemberFailed, TokenRefused
from conetd.cluster.etcd import open_etcd
from conetd.cluster.gateway import Credentials
from conetd.cluster.messages import Event, KeyValue
from conetd.errors import Invalid
from conetd.settings import ClusterSettings

URL = "http://192.0.2.1:2379"


@given(st.binary())
def test_any_key_is_given_back_as_it_came(raw: bytes) -> None:
    said = base64.b64encode(raw).decode()
    assert messages.encode(messages.decode(said)) == said


@given(st.text(min_size=1), st.text())
def test_a_key_is_in_the_range_below_a_prefix_if_and_only_if_it_begins_with_it(prefix: str, key: str) -> None:
    for candidate in (key, prefix + key):
        bounds = messages.below(prefix)
        start, end = (base64.b64decode(bounds[name]) for name in ("key", "range_end"))
        assert (start <= candidate.encode() < end) == candidate.startswith(prefix)


def test_below_nothing_is_everything() -> None:
    assert messages.below("") == {"key": "AA==", "range_end": "AA=="}


def test_numbers_of_64_bits_go_as_strings_and_zeros_are_left_out() -> None:
    assert messages.put("a", "1", lease=2**62).message == {
        "request_put": {"key": "YQ==", "value": "MQ==", "lease": str(2**62)}
    }
    assert "lease" not in messages.put("a", "1").message["request_put"]


def test_what_the_gateway_leaves_out_is_empty_or_zero() -> None:
    assert messages.key_values({"kvs": [{"key": "YQ==", "mod_revision": "3"}]}) == (KeyValue("a", "", 3),)
    assert messages.committed({"header": {"revision": "4"}}) == messages.Committed(False, 4, ())


def test_an_event_without_a_type_is_a_put() -> None:
    told = messages.events(
        {
            "events": [
                {"kv": {"key": "YQ==", "value": "MQ==", "mod_revision": "5"}},
                {"type": "DELETE", "kv": {"key": "YQ==", "mod_revision": "6"}},
            ]
        }
    )
    assert told == [Event("a", "1", 5), Event("a", None, 6)]


@pytest.mark.parametrize(
    ("status", "document", "kind"),
    [
        (503, {"error": "etcdserver: no leader", "message": "etcdserver: no leader", "code": 14}, MemberFailed),
        (503, {"error": "etcdserver: request timed out", "code": 14}, MemberFailed),
        (504, {"error": "context deadline exceeded", "code": 4}, MemberFailed),
        (500, {"error": "raft proposal dropped", "code": 2}, MemberFailed),
        (429, {"error": "etcdserver: too many requests", "code": 8}, MemberFailed),
        (429, {"error": "etcdserver: mvcc: database space exceeded", "code": 8}, EtcdRefused),
        (400, {"error": "etcdserver: mvcc: required revision is a future revision", "code": 11}, MemberFailed),
        (400, {"error": "etcdserver: mvcc: required revision has been compacted", "code": 11}, Compacted),
        (400, {"error": "etcdserver: request is too large", "code": 3}, EtcdRefused),
        (400, {"error": "etcdserver: user name is empty", "code": 3}, TokenRefused),
        (400, {"error": "etcdserver: revision of auth store is old", "code": 3}, TokenRefused),
        (401, {"error": "etcdserver: invalid auth token", "code": 16}, TokenRefused),
        (403, {"error": "etcdserver: permission denied", "code": 7}, EtcdRefused),
        (404, {"error": "etcdserver: requested lease not found", "code": 5}, LeaseGone),
        # the message of a stream, from 3.4 to 3.5 and from 3.6 on
        (200, {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}}, MemberFailed),
        (200, {"error": {"code": 14, "message": "etcdserver: no leader", "details": []}}, MemberFailed),
        # from 3.6 on there is no "error" beside the message
        (400, {"code": 3, "message": "etcdserver: request is too large", "details": []}, EtcdRefused),
    ],
    ids=str,
)
def test_an_error_is_raised_as_what_a_caller_can_do_about_it(status: int, document: Any, kind: type[Exception]) -> None:
    with pytest.raises(Exception, match=r"\S") as caught:
        read_answer(status, json.dumps(document).encode(), URL)
    assert type(caught.value) is kind


def test_only_what_was_not_begun_for_want_of_a_leader_is_surely_not_carried_out() -> None:
    for said, unsure in (("etcdserver: no leader", False), ("etcdserver: request timed out", True)):
        with pytest.raises(MemberFailed) as caught:
            read_answer(503, json.dumps({"error": said, "code": 14}).encode(), URL)
        assert caught.value.unsure is unsure


@pytest.mark.parametrize(("status", "kind"), [(502, MemberFailed), (404, EtcdRefused), (200, EtcdRefused)])
def test_what_is_no_answer_of_etcd_is_told_apart_by_its_status(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"HTTP {status} '?<html>"):
        read_answer(status, b"<html>", URL)


def test_the_message_of_a_stream_is_taken_out_of_its_envelope() -> None:
    assert read_answer(200, b'{"result": {"TTL": "5"}}\n', URL) == {"TTL": "5"}


def test_an_endpoint_knows_brackets_and_whether_it_is_secured() -> None:
    assert Endpoint.of("https://[2001:db8::1]:2379") == Endpoint(
        "https://[2001:db8::1]:2379", "2001:db8::1", 2379, tls=True
    )


@pytest.mark.parametrize("field", ["ca", "cert"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_no_use_is_named(tmp_path: Path, field: str, content: str | None) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    tls = Tls(ca=file) if field == "ca" else Tls(cert=file, key=file)
    with pytest.raises(Invalid, match=rf"cluster\.{field}: {file} .*is of no use: \S"):
        tls.context()


def test_a_password_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "none"
    with pytest.raises(Invalid, match=rf"cluster\.password_file: {file} cannot be read: No such file"):
        open_etcd(ClusterSettings((URL,), "h1", user="conetd", password_file=file))


def test_a_password_is_not_shown_with_the_rest() -> None:
    assert "secret" not in repr(Credentials("conetd", "secret"))
