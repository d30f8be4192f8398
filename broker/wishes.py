"""What can be chosen when a broker is made: the configuration that follows, or what one that is there ignores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker.config import Config, parse
from broker.core.errors import WrongState
from broker.core.names import check_name
from broker.core.operators.authority import check_server_names
from broker.core.reasons import Reason
from broker.rpc.addresses import EVERYWHERE, try_listening

OWN_HOSTS = ("localhost", "127.0.0.1")
OPERATORS, PIPELINES = "127.0.0.1:7443", "127.0.0.1:7444"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An initialised PKCS#11 token and how to log in to it."""

    module: str
    label: str
    pin_file: Path
    serial: str = ""  # "": there is one of the label only
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What can be chosen when a broker is made; everything else follows from it. "" and () are the defaults."""

    folder: Path  # absolute
    operator: str = "admin"
    hosts: tuple[str, ...] = ()  # besides those that the addresses name, and ``OWN_HOSTS``
    operators_address: str = ""
    pipelines_address: str = ""
    allowed_targets: tuple[str, ...] = ()
    credentials_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allowed_issuers: tuple[str, ...] = ()  # "host:port", those at private addresses only
    database: str = ""  # "" is SQLite in the folder
    password_file: Path | None = None
    passfile: Path | None = None
    tls_root: Path | None = None
    patience: float | None = None  # None: the usual one
    development: bool = False
    token: Token | None = None  # None: make a SoftHSM token in the folder

    @property
    def url(self) -> str:
        """The store's, with the default in place."""
        return self.database or f"sqlite:///{self.folder / 'broker.db'}"


def planned(wishes: Wishes, token: Token, name: Path) -> tuple[str, Config]:
    """The text of broker.toml and what it says; refused as ``config.load`` does, by its settings."""
    check_name(wishes.operator, "operator")
    text = _toml(wishes, token)
    config = parse(text.encode(), Path(f"What {name.name} would say"))
    check_server_names(list(server_names(config, wishes.hosts)))
    return text, config


def server_names(config: Config, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """What the server's certificate is for: what was wished, and what the addresses themselves say."""
    addresses = (config.server.operators_address, config.server.pipelines_address)
    own = (reached(address).rpartition(":")[0].strip("[]") for address in addresses)
    return tuple(dict.fromkeys((*OWN_HOSTS, *hosts, *own)))


def reached(address: str) -> str:
    """How the broker is called from its own host: nobody can call an address that only says "all of mine"."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in EVERYWHERE else address


def refuse_other(wishes: Wishes, config: Config, file: Path) -> None:
    """WrongState ``INIT_DIFFERS`` when another token or database is asked for than the configuration there names."""
    token, hsm = wishes.token, config.hsm
    if token and (
        (Path(token.module), token.label, token.pin_file) != (hsm.module, hsm.token_label, hsm.pin_file)
        or token.serial not in {"", hsm.token_serial}
    ):
        what = f"the token {hsm.token_label!r} of {hsm.module}, with the PIN in {hsm.pin_file}"
    elif wishes.database and wishes.database != config.store.url:
        what = f"the database {config.store.url}"
    else:
        return
    raise WrongState(
        Reason.INIT_DIFFERS,
        f"{file} was there already and names {what}, not what is asked for now; nothing was done. Leave those options "
        "out, or name another folder.",
    )


def ignored(wishes: Wishes, config: Config) -> Iterator[str]:
    """Each option that a configuration which is there already does not follow, with what it says."""
    server, targets, store = config.server, config.targets, config.store
    addresses = {
        "--operators-address": (wishes.operators_address, server.operators_address),
        "--pipelines-address": (wishes.pipelines_address, server.pipelines_address),
    }
    for option, (wish, there) in addresses.items():
        if wish and not wish.endswith(":0") and wish != there:
            yield f"{option} {wish} (it says {there})"
    files = {"--password-file": "password_file", "--tls-root": "tls_root", "PGPASSFILE": "passfile"}
    for option, name in files.items():
        if (wish_path := getattr(wishes, name)) and wish_path != getattr(store, name):
            yield f"{option} {wish_path} ([store] {name} is {getattr(store, name) or 'not set'})"
    if wishes.patience not in {None, store.patience_seconds}:
        yield f"--patience {wishes.patience:g} ([store] patience_seconds is {store.patience_seconds:g})"
    for host in set(wishes.allowed_targets) - targets.allowed_hosts:
        yield f"--allow-target {host} (add it to [targets] allowed_hosts)"
    for host in set(wishes.allowed_issuers) - config.oidc.allowed_hosts:
        yield f"--allow-issuer {host} (add it to [oidc] allowed_hosts)"
    for credential, names in wishes.credentials_for.items():
        if not set(names) <= set(targets.credentials_for.get(credential, ())):
            yield f"--bind-credential {credential} (add it to [targets.credentials_for])"


def _free(address: str) -> str:
    """``address``, with a port that is free now in place of port 0."""
    host, _, port = address.rpartition(":")
    if port != "0":
        return address
    return f"{host}:{try_listening(address)[3][1]}"


def _toml(wishes: Wishes, token: Token) -> str:
    folder = wishes.folder
    files = {"password_file": wishes.password_file, "passfile": wishes.passfile, "tls_root": wishes.tls_root}
    parts: dict[str, dict[str, object]] = {
        "": {
            "trust_domain": "broker.internal",
            "certificates": str(folder / "certificates"),
            "development": wishes.development,
        },
        "hsm": {
            "module": token.module,
            "token_label": token.label,
            **({"token_serial": token.serial} if token.serial else {}),
            "pin_file": str(token.pin_file),
        },
        "hsm.environment": dict(token.environment),
        "store": {
            "url": wishes.url,
            "journal": str(folder / "journal"),
            **{name: str(path) for name, path in files.items() if path},
            **({"patience_seconds": wishes.patience} if wishes.patience is not None else {}),
        },
        "server": {
            "operators_address": _free(wishes.operators_address or OPERATORS),
            "pipelines_address": _free(wishes.pipelines_address or PIPELINES),
            "certificate_file": str(folder / "certificates" / "server.pem"),
            "key_file": str(folder / "certificates" / "server.key"),
            "operator_ca_file": str(folder / "certificates" / "operator-ca.pem"),
        },
        "targets": {"allowed_hosts": list(wishes.allowed_targets), "credentials": str(folder / "credentials")},
        "targets.credentials_for": {json.dumps(name): list(whose) for name, whose in wishes.credentials_for.items()},
        "oidc": {"allowed_hosts": list(wishes.allowed_issuers)},
    }
    lines = []
    for title, values in parts.items():
        lines += [f"\n[{title}]"] if title else []
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"
