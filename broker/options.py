"""The options of `init` and `dev`: what can be chosen when a broker is made, as typed and as wished."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason
from broker.hsm.ground import kept_environment
from broker.store.config import POSTGRESQL, StoreConfig
from broker.store.waits import LONGEST, SHORTEST, USUAL
from broker.wishes import Token, Wishes


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """What `dev` can be told as well."""
    parser.add_argument("--operator", default="admin", metavar="NAME", help="the first operator's name (%(default)s)")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="HOST",
        help="a name or address the server is reached by; may be repeated",
    )
    parser.add_argument("--operators-address", default="", metavar="HOST:PORT", help="where operators are served")
    parser.add_argument("--pipelines-address", default="", metavar="HOST:PORT", help="where pipelines are served")
    parser.add_argument(
        "--allow-target", action="append", default=[], metavar="HOST:PORT",
        help="a Vault or OpenBao that keys may be imported to; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--bind-credential", action="append", default=[], metavar="HOST:PORT/NAME=TARGET[,TARGET…]",
        help="a credential that does not bear its target's name, and the targets that may use it; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--allow-issuer", action="append", default=[], metavar="HOST:PORT",
        help="an issuer of CI identities at a private address; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=_seconds, metavar="SECONDS",
        help=f"how long database and disk are waited for, {SHORTEST:g} to {LONGEST:g}; {USUAL:g} by default",
    )  # fmt: skip


def add_ground(parser: argparse.ArgumentParser) -> None:
    """A token and a database that are there already."""
    parser.add_argument("--module", help="PKCS#11 module of an existing token; without it a SoftHSM token is made")
    parser.add_argument("--token-label", help="the label of that token")
    parser.add_argument("--token-serial", help="its serial number, where several tokens have that label")
    parser.add_argument("--pin-file", type=Path, help="a file of mode 0600 that holds the user PIN of that token")
    parser.add_argument(
        "--database", default="", help="postgresql://user@host:port/name; SQLite in the folder by default"
    )
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE",
        help="a file of mode 0600 that holds the database's password; PGPASSFILE may name one of libpq's instead",
    )  # fmt: skip
    parser.add_argument(
        "--tls-root", type=Path, metavar="FILE",
        help="the CA of the database's certificate; needed unless it is on this host",
    )  # fmt: skip


_TOKEN = ("module", "token_label", "pin_file")
"""What names a token; its serial number is needed only where several have that label."""


def wishes(asked: argparse.Namespace, folder: Path, *, development: bool) -> Wishes:
    """What was typed. InvalidRequest ``TOKEN_INCOMPLETE``, ``DATABASE_INVALID``, ``BINDING_INVALID``."""
    any_port = "127.0.0.1:0" if development else ""  # nobody types it: the profile says where
    given = vars(asked)
    token = None
    if any(given.get(name) for name in (*_TOKEN, "token_serial")):
        if not all(given.get(name) for name in _TOKEN):
            lacking = [f"--{name.replace('_', '-')}" for name in _TOKEN if not given.get(name)]
            raise InvalidRequest(
                Reason.TOKEN_INCOMPLETE,
                f"{', '.join(lacking)} must be given too for a token that is there already; with none of its options a "
                "SoftHSM token is made.",
            )
        token = Token(
            module=str(Path(asked.module).absolute()),
            label=asked.token_label,
            pin_file=asked.pin_file.absolute(),
            serial=asked.token_serial or "",
            environment=kept_environment(os.environ),
        )
    files = _database_files(given)
    if given.get("database"):
        _check_database(asked.database, folder, files)
    elif asked_for := [name for name, path in files.items() if path and name != "passfile"]:
        raise InvalidRequest(Reason.DATABASE_INVALID, f"{', '.join(asked_for)} belong(s) to --database; give that too.")
    return Wishes(
        folder=folder,
        operator=asked.operator,
        hosts=tuple(asked.host),
        operators_address=asked.operators_address or any_port,
        pipelines_address=asked.pipelines_address or any_port,
        allowed_targets=tuple(asked.allow_target),
        credentials_for=dict(_binding(each) for each in asked.bind_credential),
        allowed_issuers=tuple(asked.allow_issuer),
        database=given.get("database") or "",
        **(files if given.get("database") else {}),
        patience=asked.patience,
        development=development,
        token=token,
    )


def _seconds(text: str) -> float:
    """Seconds of patience; argparse says what is wrong with them."""
    seconds = float(text)
    if not SHORTEST <= seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not from {SHORTEST:g} to {LONGEST:g}")
    return seconds


def _binding(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, targets = text.partition("=")
    if not equals:
        raise InvalidRequest(Reason.BINDING_INVALID, "Write --bind-credential HOST:PORT/NAME=TARGET[,TARGET…].")
    return name, tuple(targets.split(","))


def _database_files(given: Mapping[str, Any]) -> dict[str, Path | None]:
    """The files of a PostgreSQL database: what is given, and libpq's own variable for the passwords."""
    files = {name: given.get(name) for name in ("password_file", "tls_root")}
    libpq = str(given.get("database") or "").startswith(POSTGRESQL) and not files["password_file"]
    from_libpq = os.environ.get("PGPASSFILE") if libpq else None
    named = {**files, "passfile": Path(from_libpq) if from_libpq else None}
    return {name: path.absolute() if path else None for name, path in named.items()}


def _check_database(url: str, folder: Path, files: Mapping[str, Path | None]) -> None:
    """InvalidRequest ``DATABASE_INVALID``, before anything is made."""
    try:
        StoreConfig.model_validate({"url": url, "journal": folder / "journal", **files})
    except ValidationError as error:
        sentence = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise InvalidRequest(Reason.DATABASE_INVALID, f"--database is not one for the broker: {sentence}") from error
