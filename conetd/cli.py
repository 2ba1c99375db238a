"""The command `conetd`: run the daemon, check its settings, list the drivers."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from conetd import __version__
from conetd.errors import ConetError
from conetd.settings import DEFAULT_PATH, Settings, load

OK, FAILED, WRONG_SETTINGS = 0, 1, 2

_EPILOG = f"""exit status:
  {OK}  done; `run`: stopped by SIGTERM or SIGINT
  {FAILED}  could not be done; `run`: could not start
  {WRONG_SETTINGS}  wrong command line, wrong settings, or drivers and networks in them that do not work

environment:
  CONETD_CONFIG          the settings file, where --config is not given
  CONETD_PUBLIC_SOCKET   goes before public_socket in the file
  CONETD_PRIVATE_SOCKET  goes before private_socket in the file
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit status. Errors are one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except ConetError as err:
        print(f"conetd: {err}", file=sys.stderr)  # noqa: T201
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conetd",
        description="A daemon that owns the networking of the containers on this host.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"conetd {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    config = argparse.ArgumentParser(add_help=False)
    config.add_argument(
        "--config", type=Path, metavar="FILE", help=f"the settings, in TOML (default: {DEFAULT_PATH}, if it exists)"
    )

    run = commands.add_parser(
        "run",
        parents=[config],
        help="serve until SIGTERM",
        description="Serve until SIGTERM or SIGINT, then finish what runs. Containers keep their networking.",
    )
    run.add_argument("--debug", action="store_true", help="log each request and each change to the kernel too")
    run.set_defaults(command=_run)

    check = commands.add_parser(
        "check",
        parents=[config],
        help="check the settings and print those in effect",
        description="Check the settings, that the enabled drivers load, and the networks declared, and print "
        "the settings in effect as JSON. Nothing on the host is read or changed.",
    )
    check.set_defaults(command=_check)

    drivers = commands.add_parser(
        "drivers",
        help="list the network types installed",
        description="List the network types installed here, each with the distribution it comes from and its version.",
    )
    drivers.set_defaults(command=_drivers)
    return parser


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if settings is None:
        return WRONG_SETTINGS
    from conetd.daemon import run

    return run(settings, debug=options.debug)


def _check(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if settings is None:
        return WRONG_SETTINGS
    from conetd.check import check

    try:
        check(settings)
    except ConetError as err:
        print(f"conetd: {err}", file=sys.stderr)  # noqa: T201
        return WRONG_SETTINGS
    print(json.dumps(settings.document(), indent=2, default=str))  # noqa: T201
    return OK


def _drivers(options: argparse.Namespace) -> int:
    from conetd import registry

    rows = [("TYPE", "DISTRIBUTION", "VERSION")]
    rows += [(one.type, one.distribution, one.version) for one in registry.installed()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for type_, distribution, version in rows:
        print(f"{type_:<{widths[0]}}  {distribution:<{widths[1]}}  {version}")  # noqa: T201
    return OK


def _settings(options: argparse.Namespace) -> Settings | None:
    try:
        return load(options.config)
    except ConetError as err:
        print(f"conetd: {err}", file=sys.stderr)  # noqa: T201
        return None
