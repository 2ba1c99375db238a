"""The commands by which a lab is tried, from a terminal or from a pipe."""

from __future__ import annotations

import cmd
import contextlib
import json
import shlex
import subprocess
import sys
from typing import IO, Any

from lab import policies
from lab.cluster import Lab
from lab.errors import LabError
from lab.hosts import OVERLAY, Container, Host
from lab.talk import ask, echoes, serving

_PATIENCE_S = 1.0
_ECHO_REQUESTS = 5
_LOG_LINES = 15
_ERRORS = (LabError, AssertionError, OSError, ValueError, subprocess.SubprocessError)


class Prompt(cmd.Cmd):
    """Reads commands until `quit` or the end of the input. `failed` says whether one could not be done."""

    prompt = "lab> "
    doc_header = "Commands (help COMMAND says more):"

    def __init__(self, lab: Lab, given: IO[str] | None = None) -> None:
        super().__init__(stdin=given)
        self.failed = False
        self._lab = lab
        self._terminal = given is None
        self.use_rawinput = self._terminal
        self._policies: dict[str, dict[str, Any]] = {}
        self._services = contextlib.ExitStack()

    def precmd(self, line: str) -> str:
        """Show what came by a pipe, as a terminal does."""
        if not self._terminal and line != "EOF":
            self._say(line)
        return line

    def onecmd(self, line: str) -> bool:
        """Do it, and say what went wrong. True ends the prompt."""
        if line.lstrip().startswith("#"):
            return False
        try:
            return bool(super().onecmd(line))
        except KeyboardInterrupt:
            self._say("interrupted")
        except _ERRORS as err:
            notes = [str(err), *getattr(err, "__notes__", ())]
            self._say("error: " + "\n".join(note.strip() for note in notes))
            self.failed = True
        return False

    def emptyline(self) -> bool:
        """Nothing; cmd would do the last command again."""
        return False

    def default(self, line: str) -> None:
        """Refuse it."""
        raise LabError(f"there is no command {line.split()[0]}; try help")

    def close(self) -> None:
        """Stop what `serve` started."""
        self._services.close()

    # What there is

    def do_hosts(self, line: str) -> None:
        """hosts: every host, its address, whether its daemon runs, its containers, what happens to its packets"""
        for host in self._lab.hosts:
            trouble = [str(host.trouble)] if str(host.trouble) else []
            trouble += ["cut off from etcd"] if host.without_etcd else []
            state = "daemon runs" if host.runs else "daemon is down"
            names = ", ".join(host.containers) or "no containers"
            self._say(f"{host.name:4} {host.address:16} {state:15} {names}{''.join(f'; {one}' for one in trouble)}")

    def do_containers(self, line: str) -> None:
        """containers: every container, its host and its addresses"""
        for one in self._lab.containers.values():
            self._say(f"{one.name:12} {one.host.name:4} {' '.join(one.addresses.values())}")

    def do_status(self, line: str) -> None:
        """status HOST: what its daemon says of how everything stands"""
        (name,) = _words(line, "status HOST")
        self._say(json.dumps(self._lab.host(name).daemon.get("/status").body, indent=2))

    def do_log(self, line: str) -> None:
        """log HOST: the last lines of its daemon's log"""
        (name,) = _words(line, "log HOST")
        self._say("\n".join(self._lab.host(name).daemon.log.splitlines()[-_LOG_LINES:]))

    # Containers and what they may

    def do_up(self, line: str) -> None:
        """up HOST NAME [LABEL=VALUE ...]: start a container with these labels on the network `overlay`"""
        host, name, *labels = _words(line, "up HOST NAME [LABEL=VALUE ...]", more=True)
        if name in self._lab.containers:
            raise LabError(f"there is a container {name} already, on {self._lab.containers[name].host.name}")
        made = self._lab.host(host).container(name, policies.labels(labels))
        self._say(f"{name} is up on {host}: {' '.join(made.addresses.values())}")

    def do_down(self, line: str) -> None:
        """down NAME: end a container, and have its labels and policy forgotten"""
        (name,) = _words(line, "down NAME")
        self._container(name).remove()
        self._policies.pop(name, None)

    def do_policy(self, line: str) -> None:
        """policy NAME JSON: replace a container's policy on the network `overlay`"""
        name, _, text = line.partition(" ")
        if not text:
            raise LabError("say: policy NAME JSON")
        document = json.loads(text)
        if not isinstance(document, dict):
            raise LabError("a policy is a JSON object")
        self._set_policy(name, document)

    def do_allow(self, line: str) -> None:
        """allow FROM TO PROTOCOL [PORT]: let a container receive from FROM, another one or all with LABEL=VALUE, beside
        what it may receive already. PROTOCOL is tcp, udp, icmp or all."""
        source, name, *what = _words(line, "allow FROM TO PROTOCOL [PORT]", more=True)
        self._set_policy(name, policies.allowing(self._policies.get(name, {}), source, what))

    def do_serve(self, line: str) -> None:
        """serve NAME PORT: have the container answer at this TCP and UDP port with the address it was asked from"""
        name, port = _words(line, "serve NAME PORT")
        netns, _ = self._lab.machine(name)
        for protocol in ("tcp", "udp"):
            self._services.enter_context(serving(netns, policies.port(port), protocol=protocol))

    def do_ask(self, line: str) -> None:
        """ask FROM TO PORT [udp]: what TO's service answers to FROM, over IPv4 and IPv6. Both are containers, hosts or
        `outside`."""
        source, target, port, *protocol = _words(line, "ask FROM TO PORT [udp]", more=True)
        if protocol not in ([], ["tcp"], ["udp"]):
            raise LabError(f"services are asked by tcp or udp, not {' '.join(protocol)}")
        where, _ = self._lab.machine(source)
        for version, address in self._lab.machine(target)[1].items():
            said = ask(where, address, policies.port(port), protocol=(protocol or ["tcp"])[0], seconds=_PATIENCE_S)
            self._say(f"IPv{version} {address}: {said}")

    def do_ping(self, line: str) -> None:
        """ping FROM TO: whether TO answers an echo request, over IPv4 and IPv6"""
        source, target = _words(line, "ping FROM TO")
        where, _ = self._lab.machine(source)
        for version, address in self._lab.machine(target)[1].items():
            answers = any(echoes(where, version, address) for _ in range(_ECHO_REQUESTS))
            said = "answers" if answers else "no answer"
            self._say(f"IPv{version} {address}: {said}")

    def do_exec(self, line: str) -> None:
        """exec NAME COMMAND ...: run a command in a container, on a host, a member of etcd, or `outside`"""
        name, *command = _words(line, "exec NAME COMMAND ...", more=True)
        self._run(name, command)

    def do_shell(self, line: str) -> None:
        """shell NAME: a shell there, until you leave it"""
        (name,) = _words(line, "shell NAME")
        if not self._terminal:
            raise LabError("a shell needs a terminal; from a pipe use exec NAME COMMAND ...")
        self._run(name, ["bash"])

    # Faults

    def do_cut(self, line: str) -> None:
        """cut HOST: lose every packet of the host; its daemon and containers live on. `heal` undoes it"""
        self._lab.cut(self._host(line, "cut HOST"))

    def do_lose(self, line: str) -> None:
        """lose HOST PERCENT [MILLISECONDS]: lose so many of its packets, and have them late. `heal` undoes it"""
        name, percent, *late = _words(line, "lose HOST PERCENT [MILLISECONDS]", more=True)
        self._lab.lose(self._lab.host(name), float(percent), *map(float, late[:1]))

    def do_heal(self, line: str) -> None:
        """heal [HOST]: let the packets of the host, or of all hosts, pass again"""
        self._lab.heal(self._host(line, "heal HOST") if line.strip() else None)

    def do_restart(self, line: str) -> None:
        """restart HOST: stop its daemon and start it again"""
        self._lab.restart(self._host(line, "restart HOST"))

    def do_kill(self, line: str) -> None:
        """kill HOST: end its daemon without warning. `start` undoes it"""
        self._lab.kill(self._host(line, "kill HOST"))

    def do_start(self, line: str) -> None:
        """start HOST: start its daemon"""
        self._lab.start(self._host(line, "start HOST"))

    def do_reboot(self, line: str) -> None:
        """reboot HOST: lose all the host has but its state directory, its containers, too"""
        self._lab.reboot(self._host(line, "reboot HOST"))

    def do_etcd(self, line: str) -> None:
        """etcd status | stop | kill | start [MEMBER] | cut [HOST]: of its members, all or one such as e2; `cut` loses
        the packets between etcd and one host or all, and `heal` undoes that"""
        verb, *rest = _words(line, "etcd status|stop|kill|start [MEMBER], or etcd cut [HOST]", more=True)
        if verb == "cut":
            self._lab.cut_etcd(self._lab.host(rest[0]) if rest else None)
            return
        members = [self._lab.member(name) for name in rest]
        acts = {"stop": self._lab.etcd.stop, "kill": self._lab.etcd.kill, "start": self._lab.etcd.start}
        if verb in acts:
            acts[verb](*members)
        elif verb != "status":
            raise LabError(f"etcd cannot {verb}; try help etcd")
        for name, runs in self._lab.members().items():
            self._say(f"{name} {'runs' if runs else 'is down'}")

    def do_quit(self, line: str) -> bool:
        """quit: end the lab; nothing is left of it"""
        return True

    do_EOF = do_quit

    def get_names(self) -> list[str]:
        """Without the end of the input, which is no command to be told of."""
        return [name for name in super().get_names() if name != "do_EOF"]

    def _say(self, text: str) -> None:
        print(text, file=self.stdout, flush=True)

    def _host(self, line: str, usage: str) -> Host:
        (name,) = _words(line, usage)
        return self._lab.host(name)

    def _container(self, name: str) -> Container:
        if name not in self._lab.containers:
            raise LabError(f"there is no container {name}")
        return self._lab.containers[name]

    def _set_policy(self, name: str, document: dict[str, Any]) -> None:
        answer = self._container(name).policy(**document)
        self._policies[name] = document
        told = answer.body["networks"][OVERLAY]
        self._say(json.dumps({key: told[key] for key in ("generation", "in_force") if key in told}))

    def _run(self, name: str, command: list[str]) -> None:
        netns, _ = self._lab.machine(name)
        sys.stdout.flush()
        given = None if self._terminal else subprocess.DEVNULL  # the commands in the pipe are the lab's
        done = netns.run(*command, check=False, timeout=None, capture_output=False, stdin=given)
        if done.returncode:
            self._say(f"exit status {done.returncode}")


def _words(line: str, usage: str, *, more: bool = False) -> list[str]:
    words = shlex.split(line)
    needed = len([word for word in usage.partition("[")[0].split()[1:] if word.isupper()])
    if len(words) < needed or (len(words) > needed and not more):
        raise LabError(f"say: {usage}")
    return words
