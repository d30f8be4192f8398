"""Why PostgreSQL was not reached or would not do it, in words that are safe to show: no name, value or text of its own.

The server's and the driver's own words are in the log.
"""

from __future__ import annotations

import re

MOST = 3
"""Causes that are told, when several servers were tried."""

SCHEMA = (
    "The role may make no tables in the database (since PostgreSQL 15 only its owner may): "
    "ALTER DATABASE … OWNER TO the role"
)

_CAUSES = (
    (r"password authentication failed", "The database refused the role's password: correct its file, or set it anew"),
    (r"no password supplied", "The database asks for a password and none was found: name its file (password_file)"),
    (
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "No line of the database's pg_hba.conf lets this role in from here, with or without TLS as it is now: add one",
    ),
    (
        r"(?:peer|ident) authentication failed",
        (
            "On its socket the database takes only the system user that bears the role's name (peer): run the broker "
            "as that user, or name a TCP address and a password file"
        ),
    ),
    (
        r"authentication method requirement",
        (
            "The database asks for the password in a way that gives it away: set password_encryption to scram-sha-256 "
            "there, then the role's password anew"
        ),
    ),
    (
        r"database \"[^\n]*\" does not exist",
        "The database that the url names does not exist: create it with the role as its owner, or correct the name",
    ),
    (r"role \"[^\n]*\" does not exist", "The role that the url names does not exist: create it, or correct the name"),
    (r"is not permitted to log in", "The role may not log in: give it LOGIN"),
    (
        r"certificate verify failed|self[- ]signed certificate",
        "The database's certificate is not from the CA in tls_root: name the file of the CA that it is from",
    ),
    (
        r"does not match host name",
        (
            "The database's certificate is for other names than the host in the url: write the host as the certificate "
            "has it"
        ),
    ),
    (r"root certificate file|could not read root certificate", "The CA file that tls_root names cannot be read"),
    (r"server does not support SSL", "The database speaks no TLS, which tls_root asks for: switch ssl on there"),
    (r"Connection refused", "Nothing listens at the database's address: start it, or correct host and port"),
    (
        r"could not translate host name|not known|name resolution|failed to resolve",
        "The resolver does not know the name of the database's host: correct it",
    ),
    (
        r"on socket [^\n]* failed: No such file",
        "There is no socket of PostgreSQL in the folder that the url names, or none for this port: correct them",
    ),
    (r"on socket [^\n]* failed: Permission denied", "This user may not use the database's socket: let it"),
    (r"No route to host|Network is unreachable", "There is no way from here to the database's host"),
    (r"permission denied for schema|no schema has been selected", SCHEMA),
    (r"permission denied for (?!schema)", "The role lacks a right in the database: make it the database's owner"),
    (
        r"session is read-only|in hot standby mode|not in hot standby|is read[- ]only|read-only transaction",
        "No server that the url names takes writes: name the primary too",
    ),
    (r"too many (?:clients|connections)|remaining connection slots", "The database has no connection left"),
    (r"starting up", "The database is starting up"),
    (r"shutting down", "The database is shutting down"),
    (r"did not answer in time|timeout expired", "The database did not answer in time"),
)


def causes(said: str) -> str:
    """What the driver's words come to, a sentence without its end; "" if they say nothing that is known here."""
    found = [sentence for sign, sentence in _CAUSES if re.search(sign, said, re.IGNORECASE)]
    return ". ".join(found[:MOST])
