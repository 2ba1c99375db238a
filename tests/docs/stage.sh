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
    world && start_daemon
}

world() {
    stage_bare &&
        ip netns add outside &&
        ip link add up0 type veth peer name eth0 netns outside &&
        ip address add 192.0.2.1/24 dev up0 && ip address add 2001:db8::1/64 dev up0 nodad &&
        ip link set up0 up && ip -n outside link set lo up && ip -n outside link set eth0 up &&
        ip -n outside address add 192.0.2.254/24 dev eth0 &&
        ip route add default via 192.0.2.254 &&
        serve outside 198.51.100.80 80 "hello from the web" &&
        serve outside 203.0.113.5 5432 "hello from the database" &&
        serve outside 203.0.113.5 22 "hello from its shell"
}

# apps: the network apps, and on it the containers web (which serves its port 8080) and app.
stage_apps() {
    stage_host &&
        ask /networks -d '{"name": "apps", "type": "bridge",
            "config": {"subnet": "10.88.0.0/24", "deny_networks": ["203.0.113.0/24"]}}' &&
        container web && container app &&
        serve web "" 8080 "hello from web"
}

# hosts: the host `one` (192.0.2.1) is this one, with the container web; `two` (192.0.2.2) a namespace, with the container
# app. Each has a daemon with the type vxlan; two's has its sockets in /run as two.sock and two-guardian.sock.
stage_hosts() {
    world && second_host &&
        settings one "$CONETD" /run/conetd/guardian.sock >/etc/conetd/conetd.toml &&
        settings two /run/two.sock /run/two-guardian.sock >/etc/conetd/two.toml &&
        start_daemon && start_second_daemon &&
        process web && process app
}

# cluster: the same with an etcd on one, and the network mesh, on which web (which serves its port 8080) and app are up.
stage_cluster() {
    world && second_host && start_etcd &&
        { settings one "$CONETD" /run/conetd/guardian.sock && cluster one; } >/etc/conetd/conetd.toml &&
        { settings two /run/two.sock /run/two-guardian.sock && cluster two; } >/etc/conetd/two.toml &&
        start_daemon && start_second_daemon &&
        on_both mesh '{"name": "mesh", "type": "vxlan", "config": {"vni": 7, "subnet": "10.1.0.0/16"}}' &&
        process web && process app && serve web "" 8080 "hello from web" &&
        member $CONETD /run/conetd/guardian.sock web shop && member /run/two.sock /run/two-guardian.sock app till
}

second_host() {
    ip netns add two && ip -n outside link add br0 type bridge && ip -n outside link set br0 up &&
        ip -n outside address del 192.0.2.254/24 dev eth0 && ip -n outside address add 192.0.2.254/24 dev br0 &&
        ip -n outside link set eth0 master br0 &&
        ip link add up0 netns two type veth peer name eth1 netns outside && ip -n outside link set eth1 master br0 up &&
        ip -n two link set lo up && ip -n two address add 192.0.2.2/24 dev up0 && ip -n two link set up0 up &&
        ip -n two route add default via 192.0.2.254 && mkdir -p /etc/conetd
}

settings() { # settings HOST PUBLIC PRIVATE
    printf 'drivers = ["bridge", "vxlan"]\nstate_dir = "/var/lib/%s"\npublic_socket = "%s"\nprivate_socket = "%s"\n' "$@"
}

cluster() { # cluster HOST
    printf '[cluster]\netcd = ["http://192.0.2.1:2379"]\nhost = "%s"\nttl = 5\n' "$1"
}

start_etcd() {
    (etcd --data-dir etcd --listen-client-urls http://192.0.2.1:2379 --advertise-client-urls http://192.0.2.1:2379 \
        >>etcd.log 2>&1 &)
    await curl -sf http://192.0.2.1:2379/health
}

start_second_daemon() {
    (nsenter --net=/run/netns/two conetd run --config /etc/conetd/two.toml 2>>two.log &)
    await ask_two /status || { cat two.log; return 1; }
}

ask_two() { curl -sSf --unix-socket /run/two.sock "http://conetd$1" "${@:2}" >/dev/null; }

on_both() { # on_both NETWORK DOCUMENT: a network that both hosts are on, and know to be
    ask /networks -d "$2" && ask_two /networks -d "$2" && await both "$1"
}

both() { curl -sS --unix-socket $CONETD http://conetd/status | grep -q "\"$1\":{[^}]*}[^}]*\"one\",\"two\""; }

member() { # member PUBLIC PRIVATE HANDLE APP: a container up on mesh with a label
    curl -sSf --unix-socket "$1" "http://conetd/containers/$3/config" -o /dev/null \
        -X PUT -d "{\"attach_to\": [\"mesh\"], \"labels\": {\"app\": \"$4\"}}" &&
        echo "{\"pid\": $(ip netns pids "$3" | head -n 1)}" | conet-hook --handle "$3" --action up --socket "$2" >/dev/null
}

start_daemon() { # with the settings in /etc/conetd/conetd.toml, if there are any
    getent group conetd >/dev/null || groupadd --system conetd
    (conetd run 2>>conetd.log &)
    await ask /status || { cat conetd.log; return 1; }
}

container() { # container HANDLE: a process in a namespace of its own, up on apps
    process "$1" &&
        ask "/containers/$1/config" -X PUT -d '{"attach_to": ["apps"]}' &&
        echo "{\"pid\": $(ip netns pids "$1")}" | conet-hook --handle "$1" --action up >/dev/null
}

process() { # process HANDLE: a container that is not up
    ip netns add "$1" && ip -n "$1" link set lo up &&
        (ip netns exec "$1" sleep infinity </dev/null >/dev/null 2>&1 &) &&
        await holder "$1"
}

holder() { [ -n "$(ip netns pids "$1")" ]; }

serve() { # serve NAMESPACE ADDRESS PORT TEXT: an HTTP server there; an address is added to lo, none is any
    mkdir -p "www/$1/$3" && echo "$4" >"www/$1/$3/index.html"
    [ -z "$2" ] || ip -n "$1" address replace "$2/32" dev lo
    (ip netns exec "$1" busybox httpd -f -p "${2:+$2:}$3" -h "www/$1/$3" </dev/null >/dev/null 2>&1 &)
    await ip netns exec "$1" busybox wget -q -O - "http://${2:-127.0.0.1}:$3/"
}

# lab: `make` as in the tree, without its setup, which is done where tests run.
stage_lab() {
    stage_bare && TREE=$(dirname "$(readlink -f contrib)")
}

make() { command make --no-print-directory -C "${TREE:-.}" -o setup "$@"; }
