"""Whom etcd and its client trust: certificates, users, passwords."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd import EtcdCluster, Pem, Seen, certificates, eventually, take
from pytest_netns import Netns, NetnsFactory

from conetd.cluster.connections import Tls
from conetd.cluster.errors import EtcdDown, EtcdRefused
from conetd.cluster.etcd import Etcd, open_etcd
from conetd.cluster.gateway import Credentials
from conetd.cluster.messages import put
from conetd.settings import ClusterSettings


@pytest.fixture
def pem(tmp_path: Path) -> Pem:
    """An authority, a certificate for 127.0.0.1 and one for a client, made by openssl."""
    return certificates(tmp_path / "pem")


@pytest.fixture
def secured(home: Netns, tmp_path: Path, pem: Pem) -> Iterator[EtcdCluster]:
    """An etcd that only speaks TLS, and only with whoever has a certificate."""
    cluster = EtcdCluster.on_loopback(home, tmp_path, 1, pem=pem)
    cluster.start()
    with home.inside():
        yield cluster


def test_over_tls_all_is_as_without(home: Netns, secured: EtcdCluster, pem: Pem) -> None:
    settings = ClusterSettings(tuple(secured.endpoints), "h1", ca=pem.ca, cert=pem.client, key=pem.client_key)
    with open_etcd(settings, 5) as client, client.watch("/a") as watch:
        seen = Seen(watch, home)
        client.commit([], [put("/a", "")])
        eventually(lambda: seen.has("/a"))
        watch.close()
        assert seen.ended.wait(1)
        assert seen.error is None


def test_an_etcd_whose_authority_is_unknown_is_not_spoken_to(secured: EtcdCluster, pem: Pem) -> None:
    with (
        Etcd(secured.endpoints, tls=Tls(None, pem.client, pem.client_key)) as client,
        pytest.raises(EtcdDown, match="unable to get local issuer certificate"),
    ):
        client.get("/a")


def test_an_etcd_at_an_address_that_its_certificate_lacks_is_not_spoken_to(
    netns: NetnsFactory, tmp_path: Path, pem: Pem
) -> None:
    home = netns.make("etcd")
    cluster = EtcdCluster([(home, "127.0.0.2")], tmp_path, pem=pem)
    cluster.start()
    with (
        home.inside(),
        Etcd(cluster.endpoints, tls=Tls(pem.ca, pem.client, pem.client_key)) as client,
        pytest.raises(EtcdDown, match="IP address mismatch"),
    ):
        client.get("/a")


def test_a_host_without_a_certificate_is_told_what_is_wrong(secured: EtcdCluster, pem: Pem) -> None:
    with Etcd(secured.endpoints, tls=Tls(pem.ca)) as client, pytest.raises(EtcdDown, match=r"cluster\.cert is not set"):
        client.get("/a")


@pytest.fixture
def guarded(home: Netns, tmp_path: Path) -> Iterator[EtcdCluster]:
    """An etcd with a user `conetd`, password `secret`, who may do everything below /conetd/."""
    cluster = EtcdCluster.on_loopback(home, tmp_path, 1)
    cluster.start()
    for command in (
        "user add root:root",
        "role add root",
        "user grant-role root root",
        "user add conetd:secret",
        "role add conetd",
        "role grant-permission conetd readwrite --prefix=true /conetd/",
        "user grant-role conetd conetd",
        "auth enable",
    ):
        cluster.ctl(*command.split())
    with home.inside():
        yield cluster


def test_a_user_with_its_password_may_do_what_its_role_says(guarded: EtcdCluster, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("secret\n")
    settings = ClusterSettings(tuple(guarded.endpoints), "h1", user="conetd", password_file=secret)
    with open_etcd(settings, 5) as client, client.watch("/conetd/") as watch:
        done = client.commit([], [put("/conetd/a", "")])
        assert take(watch)[0].mod_revision == done.revision
        assert client.keep_alive(client.grant(60)) > 0
        with pytest.raises(EtcdRefused, match="permission denied"):
            client.get("/elsewhere")
        with client.watch("/elsewhere") as other, pytest.raises(EtcdRefused, match="permission denied"):
            take(other)


def test_a_wrong_password_is_refused(guarded: EtcdCluster) -> None:
    with (
        Etcd(guarded.endpoints, credentials=Credentials("conetd", "wrong")) as client,
        pytest.raises(EtcdRefused, match="invalid user ID or password"),
    ):
        client.get("/conetd/a")


def test_somebody_without_a_user_is_refused(guarded: EtcdCluster) -> None:
    with Etcd(guarded.endpoints) as client, pytest.raises(EtcdRefused, match="user name is empty"):
        client.get("/conetd/a")


@pytest.mark.parametrize("use", ["call", "watch"])
def test_a_token_that_etcd_no_longer_takes_is_renewed(guarded: EtcdCluster, use: str) -> None:
    with Etcd(guarded.endpoints, credentials=Credentials("conetd", "secret"), timeout_s=5) as client:
        client.get("/conetd/a")
        guarded.ctl("--user=root:root", "auth", "disable")
        guarded.ctl("auth", "enable")
        if use == "call":
            client.commit([], [put("/conetd/a", "")])
        else:
            with client.watch("/conetd/") as watch:
                client.commit([], [put("/conetd/a", "")])
                take(watch)


def test_a_user_is_no_hindrance_where_etcd_asks_for_none(single: EtcdCluster, place: Netns) -> None:
    with Etcd(single.endpoints, credentials=Credentials("conetd", "secret")) as client:
        assert client.get("/none") is None
