"""One bounded question over HTTPS to a CI's own token endpoint, put again while the endpoint is away.

Plain http is taken for 127.0.0.1 alone: nothing leaves the machine that way, and an imitated endpoint can be tested.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any, NoReturn

from broker_cli.budget import Budget, bounded
from broker_cli.refusal import Exit, Refusal

MAX_ANSWER = 64 * 1024
LATER = frozenset({408, 425, 429})
"""Statuses below 500 that say "later"."""

DIGITS = 5
"""Digits that a number of seconds has at most."""


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


def ask(url: str, bearer: str, origin: str, within: Budget, *, post: bool = False) -> dict[str, Any]:
    """The JSON object at ``url``; every failure is a refusal that quotes neither the address nor the answer."""
    _check_place(url, origin)
    return within.insist(lambda seconds: _once(url, bearer, origin, seconds, post=post))


def _once(url: str, bearer: str, origin: str, seconds: float, *, post: bool) -> dict[str, Any]:
    try:
        status, content = bounded(lambda: _answer(url, bearer, seconds, post=post), seconds)
    except urllib.error.HTTPError as refused:
        refused.close()
        raise _answered(origin, refused.code, refused.headers.get("Retry-After", "")) from None
    except TimeoutError:
        raise _away(origin, "it does not answer in time") from None
    except (OSError, http.client.HTTPException) as fault:
        reason = getattr(fault, "reason", fault)
        raise _away(origin, f"it cannot be reached ({type(reason).__name__})") from None
    except ValueError:  # of what is asked with: a credential that is no header
        _fail(origin, "its address or its credential is not one that can be sent")
    if status != http.HTTPStatus.OK or len(content) > MAX_ANSWER:
        _fail(origin, f"it answered with HTTP status {status} and {min(len(content), MAX_ANSWER)} bytes")
    return _read(content, origin)


def _answer(url: str, bearer: str, seconds: float, *, post: bool) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {bearer}", "Accept": "application/json", "User-Agent": "broker"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  the scheme was checked
    if post:
        request.data = b""
        request.add_header("Content-Type", "application/json")
    with _opener(url).open(request, timeout=seconds) as answer:
        content = answer.read(MAX_ANSWER + 1)
        if len(content) < min(int(answer.headers.get("Content-Length") or 0), MAX_ANSWER):
            raise http.client.IncompleteRead(content)
        return answer.status, content


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


def _answered(origin: str, status: int, retry_after: str) -> Refusal:
    """The refusal for an answer that is none: what is refused for good, and what is away for now."""
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR or status in LATER:
        digits = retry_after.isascii() and retry_after.isdecimal() and len(retry_after) <= DIGITS
        seconds = int(retry_after) if digits else 0
        asked = f", and asks to come back in {seconds} s" if seconds else ""
        refusal = _away(origin, f"it answered with HTTP status {status}{asked}")
        refusal.retry_after = seconds
        return refusal
    if status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
        why = (
            f"it refuses this job (HTTP status {status}); the job has no right to identity tokens, or what it asks "
            "with is over with the step or job that it was given to"
        )
        return Refusal("IDENTITY_REFUSED", f"No identity token came from {origin}: {why}.", Exit.NOT_LOGGED_IN)
    why = f"it answered with HTTP status {status}"
    return Refusal("IDENTITY_UNAVAILABLE", f"No identity token came from {origin}: {why}.", Exit.NOT_LOGGED_IN)


def _away(origin: str, why: str) -> Refusal:
    refusal = Refusal(
        "IDENTITY_UNAVAILABLE",
        f"No identity token came from {origin}: {why}. Try again later, or give it more time with --timeout.",
        Exit.UNAVAILABLE,
    )
    refusal.passing = True
    return refusal


def _fail(origin: str, why: str) -> NoReturn:
    raise Refusal("IDENTITY_UNAVAILABLE", f"No identity token came from {origin}: {why}.", Exit.NOT_LOGGED_IN)
