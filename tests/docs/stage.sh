# What stands before the first block of a page is run: a function for each stage. Read by the shell of docshell.py, which
# has network, mount and pid namespaces of its own.

CONETD=/run/conetd/conetd.sock

await() { # await COMMAND...: until it succeeds, for 20 s
    for _ in $(seq 400); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "in vain: $*"
    return 1
}

ask() { curl -sSf --unix-socket $CONETD "http://conetd$1" "${@:2}" >/dev/null; }

# bare: what a daemon writes by default lies in memory, and /etc is a copy.
stage_bare() {
    mkdir etc && mount -t tmpfs none etc &&
        mount -t tmpfs none /run &&
        mount -t tmpfs none /var/lib &&
        cp -a /etc/. etc 2>/dev/null
    mount --bind etc /etc && ip link set lo up
}

# host: an uplink (192.0.2.1) with machines behind it, and a running daemon.
stage_host() {
    stage_bare &&
        ip netns add outside &&
        ip link add up0 type veth peer name eth0 netns outside &&
        ip address add 192.0.2.1/24 dev up0 && ip address add 2001:db8::1/64 dev up0 nodad &&
        ip link set up0 up && ip -n outside link set lo up && ip -n outside link set eth0 up &&
        ip -n outside address add 192.0.2.254/24 dev eth0 &&
        ip route add default via 192.0.2.254 &&
        serve outside 198.51.100.80 80 "hello from the web" &&
        serve outside 203.0.113.5 5432 "hello from the database" &&
        serve outside 203.0.113.5 22 "hello from its shell" &&
        start_daemon
}

# apps: the network apps, and on it the containers web (which serves its port 8080) and app.
stage_apps() {
    stage_host &&
        ask /networks -d '{"name": "apps", "type": "bridge",
            "config": {"subnet": "10.88.0.0/24", "deny_networks": ["203.0.113.0/24"]}}' &&
        container web && container app &&
        serve web "" 8080 "hello from web"
}

start_daemon() { # with the settings in /etc/conetd/conetd.toml, if there are any
    getent group conetd >/dev/null || groupadd --system conetd
    (conetd run 2>>conetd.log &)
    await ask /status || { cat conetd.log; return 1; }
}

container() { # container HANDLE: a process in a namespace of its own, up on apps
    ip netns add "$1" && ip -n "$1" link set lo up &&
        (ip netns exec "$1" sleep infinity </dev/null >/dev/null 2>&1 &) &&
        await holder "$1" &&
        ask "/containers/$1/config" -X PUT -d '{"attach_to": ["apps"]}' &&
        echo "{\"pid\": $(ip netns pids "$1")}" | conet-hook --handle "$1" --action up >/dev/null
}

holder() { [ -n "$(ip netns pids "$1")" ]; }

serve() { # serve NAMESPACE ADDRESS PORT TEXT: an HTTP server there; an address is added to lo, none is any
    mkdir -p "www/$1/$3" && echo "$4" >"www/$1/$3/index.html"
    [ -z "$2" ] || ip -n "$1" address replace "$2/32" dev lo
    (ip netns exec "$1" busybox httpd -f -p "${2:+$2:}$3" -h "www/$1/$3" </dev/null >/dev/null 2>&1 &)
    await ip netns exec "$1" busybox wget -q -O - "http://${2:-127.0.0.1}:$3/"
}
