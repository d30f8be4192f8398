"""One bounded question over HTTPS to a CI's own token endpoint.

Plain http is taken for 127.0.0.1 alone: nothing leaves the machine that way, and an imitated endpoint can be tested.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any, NoReturn

from broker_cli.refusal import Exit, Refusal

TIMEOUT = 10.0
"""Seconds for the connection and for each part of the answer."""

MAX_ANSWER = 64 * 1024


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the job's credential to another place."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Follow none; the status itself is then the failure."""
        del req, fp, code, msg, headers, newurl


def with_query(url: str, **more: str) -> str:
    """``url`` with query parameters added to those that it has."""
    parts = urllib.parse.urlsplit(url)
    query = "&".join(one for one in (parts.query, urllib.parse.urlencode(more)) if one)
    return urllib.parse.urlunsplit(parts._replace(query=query, fragment=""))


def ask(url: str, bearer: str, origin: str, *, post: bool = False) -> dict[str, Any]:
    """The JSON object at ``url``; every failure is a refusal that quotes neither the address nor the answer."""
    _check_place(url, origin)
    try:
        headers = {"Authorization": f"Bearer {bearer}", "Accept": "application/json", "User-Agent": "broker"}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  the scheme was checked
        if post:
            request.data = b""
            request.add_header("Content-Type", "application/json")
        with _opener(url).open(request, timeout=TIMEOUT) as answer:
            status, content = answer.status, answer.read(MAX_ANSWER + 1)
    except urllib.error.HTTPError as refused:
        refused.close()
        _fail(origin, f"it answered with HTTP status {refused.code}")
    except (OSError, ValueError, http.client.HTTPException) as fault:
        reason = getattr(fault, "reason", fault)
        _fail(origin, f"it cannot be reached ({type(reason).__name__})", Exit.UNAVAILABLE)
    if status != http.HTTPStatus.OK or len(content) > MAX_ANSWER:
        _fail(origin, f"it answered with HTTP status {status} and {min(len(content), MAX_ANSWER)} bytes")
    return _read(content, origin)


def _check_place(url: str, origin: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        allowed = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname == "127.0.0.1")
    except ValueError:
        allowed = False
    if not allowed:
        _fail(origin, "its address is not https")


def _opener(url: str) -> urllib.request.OpenerDirector:
    # The CI's own endpoint may be behind the runner's proxy; what is on this machine never is.
    near = urllib.parse.urlsplit(url).hostname == "127.0.0.1"
    proxies = urllib.request.ProxyHandler({}) if near else urllib.request.ProxyHandler()
    return urllib.request.build_opener(proxies, _NoRedirects)


def _read(content: bytes, origin: str) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        _fail(origin, "its answer is not JSON with a token")
    return answer


def _fail(origin: str, why: str, code: Exit = Exit.NOT_LOGGED_IN) -> NoReturn:
    raise Refusal("IDENTITY_UNAVAILABLE", f"No identity token came from {origin}: {why}.", code)
