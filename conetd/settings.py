"""Which settings the daemon runs with: defaults, the TOML file, and what the environment overrides."""

from __future__ import annotations

import ipaddress
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from marshmallow import Schema, ValidationError, fields, post_load, validate, validates, validates_schema

from conetd import documents
from conetd.errors import Invalid
from conetd.model import JSON, IPAddress
from conetd.model.names import NETWORK_NAME
from conetd.policy.fields import Switch

DEFAULT_PATH = Path("/etc/conetd/conetd.toml")
DEFAULT_GROUP = "conetd"
FILTERS = ("auto", "nftables", "iptables")
LOGS = ("text", "json")
# sockaddr_un holds 108 bytes with the NUL, unix(7)
_SOCKET_PATH_MAX = 107
_TTL_MIN, _TTL_MAX = 2, 3600  # seconds; etcd itself grants no less than twice the time its elections take
_ENVIRONMENT = {"CONETD_PUBLIC_SOCKET": "public_socket", "CONETD_PRIVATE_SOCKET": "private_socket"}


@dataclass(frozen=True, slots=True)
class PortPool:
    """Host ports `start` to `start + size - 1`: those given to mappings that ask for any.

    The defaults are Garden's: 61001 to 65534.
    """

    start: int = 61001
    size: int = 4534


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The etcd that hosts share, and who this one is among them. Each field is a key of the table `cluster`."""

    etcd: tuple[str, ...]
    """URLs of its members: `http://host:port` or `https://host:port`."""
    host: str
    """This host's name, which no other has. In the file the system's hostname if left out."""
    prefix: str = "/conetd"
    """What all keys of the cluster begin with; no slash at its end."""
    ttl: int = 15
    """Seconds without a sign of life from this host after which the others take it for gone."""
    ca: Path | None = None
    """Certificates of the authorities that etcd's may be from. None: those that the system trusts."""
    cert: Path | None = None
    """The certificate that this host shows to etcd, `key` belonging to it."""
    key: Path | None = None
    user: str | None = None
    """The user of etcd's that this host comes as, with the password in the file `password_file`."""
    password_file: Path | None = None

    def document(self) -> JSON:
        """The table as the file would say it, without what is None."""
        shown: JSON = {"etcd": list(self.etcd), "host": self.host, "prefix": self.prefix, "ttl": self.ttl}
        files = {"ca": self.ca, "cert": self.cert, "key": self.key, "password_file": self.password_file}
        shown |= {name: str(path) for name, path in files.items() if path is not None}
        return shown | ({} if self.user is None else {"user": self.user})


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
    fast_path: bool = True
    """Whether busy connections between hosts are carried beside the packet filter, once it has let them through."""
    cluster: ClusterSettings | None = None
    """None: this host is alone, or knows the others from what its networks' configs say."""

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
            "fast_path": self.fast_path,
        }
        if self.socket_group is not None:
            shown["socket_group"] = self.socket_group
        if self.cluster is not None:
            shown["cluster"] = self.cluster.document()
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


class _EtcdUrl(fields.String):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            port = None
        if not port or parts.scheme not in ("http", "https") or text != f"{parts.scheme}://{parts.netloc}":
            raise ValidationError("Must be http://host:port or https://host:port.")
        if not parts.hostname or "@" in parts.netloc:
            raise ValidationError("Must be http://host:port or https://host:port.")
        return text


def _name() -> fields.String:
    return fields.String(validate=validate.Regexp(rf"(?:{NETWORK_NAME.pattern})\Z", error="Not a possible name."))


def _names(**kwargs: Any) -> fields.List[str]:
    return fields.List(_name(), **kwargs)


def _refuse_repeated(names: Sequence[str]) -> None:
    repeated = {index: ["Named twice."] for index, name in enumerate(names) if name in names[:index]}
    if repeated:
        raise ValidationError(repeated)


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


class _ClusterSchema(Schema):
    etcd = fields.List(_EtcdUrl(), required=True, validate=validate.Length(1))
    host = _name()
    prefix = fields.String(
        validate=validate.Regexp(
            r"(?:/[A-Za-z0-9._-]+)+/?\Z",
            error="Must be one or more parts of A-Z a-z 0-9 . _ - with a slash before each.",
        )
    )
    ttl = fields.Integer(strict=True, validate=validate.Range(_TTL_MIN, _TTL_MAX))
    ca = _AbsolutePath()
    cert = _AbsolutePath()
    key = _AbsolutePath()
    user = fields.String(validate=validate.Length(1))
    password_file = _AbsolutePath()

    @validates("etcd")
    def _check_repeated(self, urls: list[str], data_key: str) -> None:
        _refuse_repeated(urls)

    @validates_schema
    def _check_pairs(self, data: JSON, **kwargs: Any) -> None:
        for one, other in (("cert", "key"), ("key", "cert"), ("user", "password_file"), ("password_file", "user")):
            if one in data and other not in data:
                raise ValidationError(f"Needs {other} beside it.", one)
        plain = [url for url in data["etcd"] if not url.startswith("https:")]
        for name in ("ca", "cert"):
            if name in data and plain:
                raise ValidationError(f"Of no use for {plain[0]}, which is not https.", name)

    @post_load
    def _make(self, data: JSON, **kwargs: Any) -> ClusterSettings:
        host = data.setdefault("host", os.uname().nodename)
        if not NETWORK_NAME.fullmatch(host):
            raise ValidationError(f"Needed: the system's hostname {host!r} is not a possible name.", "host")
        if "prefix" in data:
            data["prefix"] = data["prefix"].rstrip("/")
        return ClusterSettings(etcd=tuple(data.pop("etcd")), **data)


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
    fast_path = Switch()
    cluster = fields.Nested(_ClusterSchema)

    @validates("drivers", "default_attach_to")
    def _check_repeated(self, names: list[str], data_key: str) -> None:
        _refuse_repeated(names)

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
