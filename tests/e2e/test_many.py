"""Two hundred containers up and down, thirty-two at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from world import World, eventually


def test_two_hundred_containers_come_and_go_without_a_trace(world: World) -> None:
    daemon = world.daemon
    daemon.network(default_policy={"net_in": [{"host_port": 0, "container_port": 8080}]})
    before = world.remains()
    files = sorted(path.name for path in daemon.folder.rglob("*"))
    handles = [f"c{number}" for number in range(200)]
    namespaces = {handle: world.container(handle) for handle in handles}
    for handle in handles:
        daemon.join(handle, "blue")
    with ThreadPoolExecutor(32) as pool:
        ups = list(pool.map(lambda handle: daemon.up(handle, namespaces[handle]), handles))
    assert {answer.status for answer in ups} == {200}, [answer for answer in ups if answer.status != 200][:3]
    addresses = [address for answer in ups for address in answer.body["attachments"][0]["addresses"]]
    assert len(set(addresses)) == len(addresses) == 200
    ports = [port["host_port"] for answer in ups for port in answer.body["mapped_ports"]]
    assert len(set(ports)) == len(ports) == 200
    with ThreadPoolExecutor(32) as pool:
        downs = list(pool.map(daemon.down, handles))
    assert {answer.status for answer in downs} == {200}
    for handle in handles:
        assert daemon.delete(f"/containers/{handle}").status == 204
    eventually(lambda: world.remains() == before, "links, rules and rows are as before")
    assert sorted(path.name for path in daemon.folder.rglob("*")) == files
