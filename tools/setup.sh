#!/bin/sh
# What a fresh Debian 12 machine needs before `make test` and `make demo` run. Repeating it does nothing, quickly.
set -eu
cd "$(dirname "$0")/.."

# build-essential and python3-dev compile python-iptables, libnftables1 serves the tests' listings,
# the rest is called by tests, demo and bench.
PACKAGES="python3 python3-venv python3-dev build-essential
    iproute2 nftables libnftables1 iptables conntrack kmod procps
    runc busybox-static curl tcpdump socat iperf3 util-linux etcd-server etcd-client openssl"

complain() { echo "setup: $*" >&2; }

install_packages() {
    if ! command -v dpkg-query >/dev/null; then
        complain "this is not Debian, so install what these Debian packages carry yourself:" $PACKAGES
        return
    fi
    missing=""
    for package in $PACKAGES; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        complain "not root, and these packages are missing:$missing"
        exit 1
    fi
    complain "installing$missing"
    # Debian starts an etcd with its package; the tests run their own, and none is wanted on the host.
    keep_down=""
    case " $missing " in *" etcd-server "*) [ ! -d /run/systemd/system ] || keep_down=etcd.service ;; esac
    [ -z "$keep_down" ] || systemctl -q mask "$keep_down" 2>/dev/null || keep_down=""
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of words
    apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
    }
    if [ -n "$keep_down" ]; then
        systemctl -q unmask "$keep_down"
        systemctl -q disable "$keep_down" 2>/dev/null || complain "could not disable $keep_down"
    fi
}

install_python() {
    stamp=$(cat pyproject.toml contrib/pytest-netns/pyproject.toml tools/setup.sh | sha256sum)
    [ "$(cat .venv/setup-stamp 2>/dev/null)" != "$stamp" ] || return 0
    complain "installing conetd and its development tools into .venv"
    # Debian's own interpreter: the hook is started with it, and the timings compare with it
    [ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
    .venv/bin/pip install -q --disable-pip-version-check -e '.[dev]' -e contrib/pytest-netns
    echo "$stamp" >.venv/setup-stamp
}

install_packages
install_python
