"""Which settings the daemon runs with: defaults, the TOML file, and what the environment overrides."""

from __future__ import annotations

import ipaddress
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validate, validates, validates_schema

from conetd import documents
from conetd.errors import Invalid
from conetd.model import JSON, IPAddress
from conetd.model.names import NETWORK_NAME

DEFAULT_PATH = Path("/etc/conetd/conetd.toml")
DEFAULT_GROUP = "conetd"
FILTERS = ("auto", "nftables", "iptables")
LOGS = ("text", "json")
# sockaddr_un holds 108 bytes with the NUL, unix(7)
_SOCKET_PATH_MAX = 107
_ENVIRONMENT = {"CONETD_PUBLIC_SOCKET": "public_socket", "CONETD_PRIVATE_SOCKET": "private_socket"}


@dataclass(frozen=True, slots=True)
class PortPool:
    """Host ports `start` to `start + size - 1`: those given to mappings that ask for any.

    The defaults are Garden's: 61001 to 65534.
    """

    start: int = 61001
    size: int = 4534


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator can choose. Each field is the key of the same name in the file."""

    state_dir: Path = Path("/var/lib/conetd")
    public_socket: Path = Path("/run/conetd/conetd.sock")
    private_socket: Path = Path("/run/conetd/guardian.sock")
    socket_group: str | None = None
    """Group of the public socket. None: `conetd` where that group exists, else root's."""
    filter: str = "auto"
    """`auto`, `nftables` or `iptables`."""
    drivers: tuple[str, ...] = ("bridge",)
    """Enabled network types."""
    default_attach_to: tuple[str, ...] = ()
    """Networks a container joins for which neither its config nor its engine says any."""
    networks: tuple[JSON, ...] = ()
    """Networks declared at start: documents as `POST /networks` takes them, not checked any deeper here."""
    external_ip: IPAddress | None = None
    """The address reported for published ports. None: that of the default route."""
    port_pool: PortPool = field(default_factory=PortPool)
    driver_timeout: float = 30.0
    """Seconds a foreign driver's call may take."""
    log: str = "text"
    """`text` or `json`."""

    def document(self) -> JSON:
        """The settings as the file would say them; loading the result gives the same settings."""
        shown: JSON = {
            "state_dir": str(self.state_dir),
            "public_socket": str(self.public_socket),
            "private_socket": str(self.private_socket),
            "filter": self.filter,
            "drivers": list(self.drivers),
            "default_attach_to": list(self.default_attach_to),
            "networks": list(self.networks),
            "external_ip": "auto" if self.external_ip is None else str(self.external_ip),
            "port_pool": {"start": self.port_pool.start, "size": self.port_pool.size},
            "driver_timeout": self.driver_timeout,
            "log": self.log,
        }
        if self.socket_group is not None:
            shown["socket_group"] = self.socket_group
        return shown


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. A path given here goes before CONETD_CONFIG, which goes before /etc/conetd/conetd.toml.

    Only the last may be missing: then the defaults hold. CONETD_PUBLIC_SOCKET and CONETD_PRIVATE_SOCKET go before the
    file; an empty variable counts as unset. Raises Invalid, naming the file and the path of each offending key.
    """
    env = os.environ if environment is None else environment
    named = path or (Path(env["CONETD_CONFIG"]) if env.get("CONETD_CONFIG") else None)
    document = _read(named or DEFAULT_PATH, must_exist=named is not None)
    for variable, key in _ENVIRONMENT.items():
        if env.get(variable):
            document[key] = env[variable]
    return parse(document, what=f"settings file {named or DEFAULT_PATH}")


def parse(document: Any, *, what: str = "settings") -> Settings:
    """Check a document and return the settings it says. Raises Invalid."""
    settings = documents.load(_SettingsSchema(), document, what=what)
    assert isinstance(settings, Settings)
    return settings


def _read(path: Path, *, must_exist: bool) -> JSON:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        if must_exist:
            raise Invalid(f"settings file {path} does not exist") from None
        return {}
    except OSError as err:
        raise Invalid(f"settings file {path} cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise Invalid(f"settings file {path} is not UTF-8: {err.reason} at byte {err.start}") from err
    except tomllib.TOMLDecodeError as err:
        raise Invalid(f"settings file {path} is not TOML: {err}") from err


class _AbsolutePath(fields.String):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        if not text.startswith("/") or "\0" in text:
            raise ValidationError("Must be an absolute path.")
        return Path(text)


class _SocketPath(_AbsolutePath):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        path = super()._deserialize(value, *args, **kwargs)
        if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
            raise ValidationError(f"Longer than the {_SOCKET_PATH_MAX} bytes a socket's path can have.")
        return path


class _Seconds(fields.Field[float]):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValidationError("Must be a number of seconds above 0.")
        return float(value)


class _ExternalIp(fields.Field[IPAddress | None]):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> IPAddress | None:
        if value == "auto":
            return None
        try:
            address = ipaddress.ip_address(value if isinstance(value, str) else "")
        except ValueError:
            raise ValidationError('Must be "auto" or an IP address.') from None
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            raise ValidationError("Nobody can reach a published port at this address.")
        return address


def _names(**kwargs: Any) -> fields.List[str]:
    name = fields.String(validate=validate.Regexp(rf"(?:{NETWORK_NAME.pattern})\Z", error="Not a possible name."))
    return fields.List(name, **kwargs)


class _PortPoolSchema(Schema):
    start = fields.Integer(strict=True, validate=validate.Range(1, 65535))
    size = fields.Integer(strict=True, validate=validate.Range(1, 65535))

    @post_load
    def _make(self, data: JSON, **kwargs: Any) -> PortPool:
        pool = PortPool(**data)
        if pool.start + pool.size > 65535:
            raise ValidationError(
                f"start {pool.start} and size {pool.size} together exceed 65535, the highest port.", "size"
            )
        return pool


class _SettingsSchema(Schema):
    state_dir = _AbsolutePath()
    public_socket = _SocketPath()
    private_socket = _SocketPath()
    socket_group = fields.String(validate=validate.Length(1))
    filter = fields.String(validate=validate.OneOf(FILTERS))
    drivers = _names(validate=validate.Length(1))
    default_attach_to = _names()
    networks = fields.List(fields.Dict(keys=fields.String()))
    external_ip = _ExternalIp()
    port_pool = fields.Nested(_PortPoolSchema)
    driver_timeout = _Seconds()
    log = fields.String(validate=validate.OneOf(LOGS))

    @validates("drivers", "default_attach_to")
    def _refuse_repeated(self, names: list[str], data_key: str) -> None:
        repeated = {index: ["Named twice."] for index, name in enumerate(names) if name in names[:index]}
        if repeated:
            raise ValidationError(repeated)

    @validates("networks")
    def _check_names(self, networks: list[JSON], data_key: str) -> None:
        complaints: dict[int, JSON] = {}
        seen: list[str] = []
        for index, network in enumerate(networks):
            name = network.get("name")
            if not isinstance(name, str):
                complaints[index] = {"name": ["Missing, or not a string."]}
            elif name in seen:
                complaints[index] = {"name": ["Declared twice."]}
            else:
                seen.append(name)
        if complaints:
            raise ValidationError(complaints)

    @validates_schema
    def _check_sockets(self, data: JSON, **kwargs: Any) -> None:
        public = data.get("public_socket", Settings().public_socket)
        if public == data.get("private_socket", Settings().private_socket):
            raise ValidationError("The two sockets need two paths.", "private_socket")

    @post_load
    def _make(self, data: JSON, **kwargs: Any) -> Settings:
        for key in ("drivers", "default_attach_to", "networks"):
            if key in data:
                data[key] = tuple(data[key])
        return Settings(**data)
