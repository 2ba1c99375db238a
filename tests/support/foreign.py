"""Distributions with drivers of other people, put where a daemon finds them; their drivers are named by their vices.

A driver does what it does in a directory that its network's config names: it keeps a journal there (`calls`), and the
tests put files there that provoke its vice (`hang-web`, `fail-detach`).
"""

from __future__ import annotations

import os
from pathlib import Path

DRIVERS = '''
import os, subprocess, time
from pathlib import Path

from marshmallow import Schema, fields

from conetd.driver import Driver, DriverError, Lease
from conetd.plan import Drift


class Config(Schema):
    directory = fields.String(required=True)
    flavour = fields.String(load_default="plain")


class Policy(Schema):
    note = fields.String(load_default="")


class PlainDriver(Driver):
    """Gives a container an interface that leads nowhere."""

    config_schema = Config
    policy_schema = Policy

    def directory(self, ctx):
        return Path(ctx.network.config["directory"])

    def called(self, ctx, method, who):
        with (self.directory(ctx) / "calls").open("a") as journal:
            journal.write(f"{method} {who}\\n")
        if (self.directory(ctx) / f"fail-{method}").exists():
            raise DriverError(f"{method} {who}: the switch does not answer")
        self.vice(ctx, method, who)

    def vice(self, ctx, method, who):
        """None."""

    def allocate(self, network, attachment, held):
        number = next(one for one in range(1000) if f"number:{one}" not in held)
        return Lease({"number": number}, frozenset({f"number:{number}"}))

    def ensure_network(self, ctx):
        self.called(ctx, "ensure_network", f"{ctx.network.name} {ctx.network.config['flavour']}")

    def remove_network(self, ctx):
        self.called(ctx, "remove_network", f"{ctx.network.name} {ctx.network.config['flavour']}")

    def attach(self, ctx):
        self.called(ctx, "attach", ctx.attachment.handle)
        self.inside(ctx, "link", "add", ctx.attachment.ifname, "type", "bridge", check=False)
        self.inside(ctx, "link", "set", ctx.attachment.ifname, "up")
        self.keep_note(ctx)
        return {"number": ctx.attachment.lease.data["number"]}

    def detach(self, ctx):
        self.called(ctx, "detach", ctx.attachment.handle)
        if ctx.netns is not None:
            self.inside(ctx, "link", "del", ctx.attachment.ifname, check=False)
        (self.directory(ctx) / f"note-{ctx.attachment.handle}").unlink(missing_ok=True)

    def apply_policy(self, ctx):
        self.called(ctx, "apply_policy", ctx.attachment.handle)
        self.keep_note(ctx)

    def check(self, ctx):
        found = self.inside(ctx, "link", "show", ctx.attachment.ifname, check=False)
        return [Drift("missing", f"link {ctx.attachment.ifname}")] if found.returncode else []

    def keep_note(self, ctx):
        (self.directory(ctx) / f"note-{ctx.attachment.handle}").write_text(ctx.policy["note"])

    def inside(self, ctx, *words, check=True):
        enter = ["nsenter", f"--net=/proc/self/fd/{ctx.netns.fd}", "ip", *words]
        return subprocess.run(enter, pass_fds=[ctx.netns.fd], check=check, capture_output=True)


class SlowDriver(PlainDriver):
    """Does not come back while there is a file `hang-METHOD-HANDLE`."""

    def vice(self, ctx, method, who):
        while (self.directory(ctx) / f"hang-{method}-{who.split()[0]}").exists():
            time.sleep(0.02)


class BuggyDriver(PlainDriver):
    """Raises what no driver may."""

    def vice(self, ctx, method, who):
        if (self.directory(ctx) / f"bug-{method}").exists():
            raise ValueError(f"{method}: list index out of luck")


class ForgetfulDriver(PlainDriver):
    """Attaches, and forgets the interface."""

    def attach(self, ctx):
        told = super().attach(ctx)
        if (self.directory(ctx) / "forget").exists():
            self.inside(ctx, "link", "del", ctx.attachment.ifname)
        return told
'''
TYPES = {one: f"acme_drivers:{one.title()}Driver" for one in ("plain", "slow", "buggy", "forgetful")}


def install(
    site: Path, types: dict[str, str] | None = None, source: str = DRIVERS, *, distribution: str = "acme-net"
) -> None:
    """Lay a distribution of version 1.2 into a directory of `sys.path`, as `pip install --target` would."""
    info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    entries = "".join(f"{type_} = {target}\n" for type_, target in (TYPES if types is None else types).items())
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[conetd.drivers]\n{entries}")
    (site / f"{distribution.split('-')[0]}_drivers.py").write_text(source)


def python_path(*directories: Path) -> dict[str, str]:
    """The environment of a daemon that finds what is installed there."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*map(str, directories), *([inherited] if inherited else [])])}
