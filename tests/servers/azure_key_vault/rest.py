"""The Key Vault REST API for keys: which paths there are, what each takes and gives."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric import rsa

from . import material as materials
from .attributes import Attributes, check_tags
from .encoding import decode, encode, members, parse
from .listener import Answer, Request
from .material import CURVES, OPERATIONS, RSA_BITS
from .operations import operate
from .refusals import Refused, bad_parameter, forbidden
from .shelf import KeyVersion, Named, Shelf, scheduled_purge
from .transfer import TransferFile

API_VERSIONS = ("2016-10-01", "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "2025-07-01")
MANAGED_HSM_API_VERSIONS = API_VERSIONS[API_VERSIONS.index("7.2") :]
PAGE = 25
_NAME = r"(?P<name>[^/]*)"
_VERSION = r"(?P<version>[0-9a-f]{32})"
_OPERATION = "(?P<operation>sign|verify|encrypt|decrypt|wrapkey|unwrapkey)"
_OPERATIONS = {each.lower(): each for each in ("sign", "verify", "encrypt", "decrypt", "wrapKey", "unwrapKey")}


class Rest:
    """Answers authenticated requests from one shelf of keys."""

    def __init__(self, url: str, shelf: Shelf, now: Callable[[], int], *, managed_hsm: bool) -> None:
        self._url, self._shelf, self._now, self._managed_hsm = url, shelf, now, managed_hsm
        self._lock = threading.RLock()
        self.denied: set[str] = set()
        self.stock: list[rsa.RSAPrivateKey] = []

    def answer(self, request: Request, *, other_key: bool = False) -> Answer:
        """``other_key``: an import keeps another key than it was sent."""
        self._check_query(request)
        right, do, names = self._route(request)
        if "name" in names and not re.fullmatch(r"[0-9A-Za-z-]{1,127}", names["name"]):
            raise bad_parameter("The name of a key has 1 to 127 letters, digits and hyphens.")
        right = _OPERATIONS.get(names.get("operation", "").lower(), right)
        if right in self.denied:
            raise forbidden("ForbiddenByRbac", f"The caller is not authorized to perform the action keys/{right}.")
        body = _body(request)
        extra = {"other_key": other_key} if right == "import" else {}
        return do(self, names, body, request, **extra)

    def _check_query(self, request: Request) -> None:
        if unknown := set(request.query) - {"api-version", "maxresults", "$skiptoken"}:
            raise bad_parameter(f"The query has the unknown parameter {min(unknown)[:40]}.")
        known = MANAGED_HSM_API_VERSIONS if self._managed_hsm else API_VERSIONS
        if request.query.get("api-version") not in known:
            raise bad_parameter(f"The api-version is missing or not one of {', '.join(known)}.")

    def _route(self, request: Request) -> tuple[str, Callable[..., Answer], dict[str, str]]:
        path = request.path.removesuffix("/")
        found = [
            (method, right, do, match.groupdict())
            for method, pattern, right, do in self._routes
            if (match := re.fullmatch(pattern, path, re.IGNORECASE))
        ]
        for method, right, do, names in found:
            if method == request.method:
                return right, do, names
        if found:
            raise Refused(405, "MethodNotAllowed", f"{request.method} does not go with this path.")
        raise Refused(404, "NotFound", "There is nothing at this path.")

    # keys

    def _list(self, _names: dict[str, str], _body: dict[str, Any], request: Request) -> Answer:
        found = [self._item(each, versioned=False) for each in self._shelf.newest()]
        return self._page(request, found)

    def _list_versions(self, names: dict[str, str], _body: dict[str, Any], request: Request) -> Answer:
        # By version id, not by age: the order is not documented, and nobody may lean on it.
        held = sorted(self._shelf.versions(names["name"]), key=lambda each: each.version)
        return self._page(request, [self._item(each, versioned=True) for each in held])

    def _get(self, names: dict[str, str], _body: dict[str, Any], _request: Request) -> Answer:
        return Answer(200, self._bundle(self._shelf.get(names["name"], names.get("version", ""))))

    def _create(self, names: dict[str, str], body: dict[str, Any], _request: Request) -> Answer:
        """A key exchange key; this fake creates no other."""
        optional = ("key_size", "key_ops", "attributes", "tags", "public_exponent")
        asked = members(body, "The request", ("kty",), optional)
        if asked["kty"] != "RSA-HSM" or asked.get("key_ops") != ["import"]:
            raise bad_parameter("Only an RSA-HSM key with 'import' as its one operation is created here.")
        bits = asked.get("key_size", RSA_BITS[0])
        if bits not in RSA_BITS or asked.get("public_exponent", 65537) != 65537:
            raise bad_parameter("An RSA key has 2048, 3072 or 4096 bits and the exponent 65537.")
        attributes, tags = self._told(asked)
        self._shelf.check_room(names["name"])
        material = next((key for key in self.stock if key.key_size == bits), None)
        if material:
            self.stock.remove(material)
        else:
            material = rsa.generate_private_key(65537, bits)
        with self._lock:
            made = self._shelf.put(names["name"], "RSA-HSM", material, ["import"], attributes, tags)
        return Answer(200, self._bundle(made))

    def _import_key(
        self, names: dict[str, str], body: dict[str, Any], _request: Request, *, other_key: bool = False
    ) -> Answer:
        """BYOK only: a key in the clear is refused like any other unknown member."""
        asked = members(body, "The request", ("key",), ("Hsm", "attributes", "tags"))
        key = members(asked["key"], "key", ("kty", "key_hsm"), ("crv", "key_ops", "kid"))
        kty, crv = self._kind(key, asked.get("Hsm"))
        operations = materials.check_operations(kty, key.get("key_ops"))
        attributes, tags = self._told(asked)
        self._shelf.check_room(names["name"])
        file = TransferFile(key["key_hsm"])
        material = file.open(self._kek(file.kid), kty, crv)
        if other_key:
            material = materials.another(material)
        with self._lock:
            made = self._shelf.put(names["name"], kty, material, operations, attributes, tags)
        return Answer(200, self._bundle(made))

    def _update(self, names: dict[str, str], body: dict[str, Any], _request: Request) -> Answer:
        asked = members(body, "The request", (), ("key_ops", "attributes", "tags"))
        with self._lock:
            key = self._shelf.get(names["name"], names.get("version", ""))
            operations = key.key_ops
            if asked.get("key_ops") is not None and asked["key_ops"] != key.key_ops:
                if key.key_ops == ["import"]:
                    raise bad_parameter("A key exchange key stays one.")
                operations = materials.check_operations(key.kty, asked["key_ops"])
            tags = key.tags if asked.get("tags") is None else check_tags(asked["tags"])
            key.attributes.change(asked.get("attributes") or {}, self._now())
            key.key_ops, key.tags = operations, tags
        return Answer(200, self._bundle(key))

    def _operate(self, names: dict[str, str], body: dict[str, Any], _request: Request) -> Answer:
        key = self._shelf.get(names["name"], names.get("version", ""))
        done = operate(key, _OPERATIONS[names["operation"].lower()], body, self._now())
        # A verification's answer has the verdict alone.
        return Answer(200, done if isinstance(done["value"], bool) else {"kid": self._kid(key), **done})

    # deleted keys

    def _delete(self, names: dict[str, str], _body: dict[str, Any], _request: Request) -> Answer:
        with self._lock:
            return Answer(200, self._deleted_bundle(self._shelf.delete(names["name"])))

    def _list_deleted(self, _names: dict[str, str], _body: dict[str, Any], request: Request) -> Answer:
        found = [
            {**self._item(key.versions[-1], versioned=False), **self._recovery(key)} for key in self._shelf.deleted()
        ]
        return self._page(request, found)

    def _get_deleted(self, names: dict[str, str], _body: dict[str, Any], _request: Request) -> Answer:
        return Answer(200, self._deleted_bundle(self._shelf.get_deleted(names["name"])))

    def _recover(self, names: dict[str, str], _body: dict[str, Any], _request: Request) -> Answer:
        with self._lock:
            return Answer(200, self._bundle(self._shelf.recover(names["name"])))

    def _purge(self, names: dict[str, str], _body: dict[str, Any], _request: Request) -> Answer:
        with self._lock:
            self._shelf.purge(names["name"])
        return Answer(204)

    # what they are made of

    def _kind(self, key: dict[str, Any], hsm: object) -> tuple[str, str | None]:
        kty, crv = key["kty"], key.get("crv")
        if kty not in OPERATIONS or hsm not in (None, True):
            raise bad_parameter("A transfer file brings an RSA-HSM, EC-HSM or oct-HSM key, into the HSM.")
        if kty == "oct-HSM" and not self._managed_hsm:
            raise bad_parameter("An oct-HSM key can only be brought to a managed HSM.")
        if (crv in CURVES) != (kty == "EC-HSM") or (crv is not None and kty != "EC-HSM"):
            raise bad_parameter("crv names the curve of an EC-HSM key: P-256, P-384, P-521 or P-256K.")
        return kty, crv

    def _kek(self, kid: str) -> rsa.RSAPrivateKey:
        """The key exchange key with exactly that id, if it is one and may be used."""
        found = re.fullmatch(rf"{re.escape(self._url)}/keys/([0-9A-Za-z-]+)/([0-9a-f]{{32}})", kid)
        held = self._shelf.versions(found[1]) if found else []
        kek = next((each for each in held if self._kid(each) == kid), None)
        if kek is None or not isinstance(kek.material, rsa.RSAPrivateKey) or kek.key_ops != ["import"]:
            raise bad_parameter("The transfer file's kid is not the id of a key exchange key of this vault.")
        if not kek.enabled:
            raise forbidden("KeyDisabled", "Operation import is not allowed on a disabled key.")
        if kek.attributes.expires is not None and self._now() >= kek.attributes.expires:
            raise forbidden("KeyExpired", "Operation import is not allowed on an expired key.")
        return kek.material

    def _told(self, asked: dict[str, Any]) -> tuple[Attributes, dict[str, str]]:
        attributes = Attributes(created=self._now(), updated=self._now())
        attributes.change(asked.get("attributes") or {}, self._now())
        return attributes, check_tags(asked.get("tags"))

    def _kid(self, key: KeyVersion, *, versioned: bool = True) -> str:
        return f"{self._url}/keys/{key.name}" + (f"/{key.version}" if versioned else "")

    def _item(self, key: KeyVersion, *, versioned: bool) -> dict[str, Any]:
        tags = {"tags": key.tags} if key.tags else {}
        attributes = key.attributes.shown(purgeable=self._shelf.purgeable)
        return {"kid": self._kid(key, versioned=versioned), "attributes": attributes, **tags}

    def _bundle(self, key: KeyVersion) -> dict[str, Any]:
        public = materials.public_members(key.material)
        web_key = {"kid": self._kid(key), "kty": key.kty, "key_ops": key.key_ops, **public}
        item = self._item(key, versioned=True)
        del item["kid"]
        return {"key": web_key, **item}

    def _recovery(self, key: Named) -> dict[str, Any]:
        return {"recoveryId": f"{self._url}/deletedkeys/{key.name}", **scheduled_purge(key)}

    def _deleted_bundle(self, key: Named) -> dict[str, Any]:
        return {**self._recovery(key), **self._bundle(key.versions[-1])}

    def _page(self, request: Request, found: list[dict[str, Any]]) -> Answer:
        size = request.query.get("maxresults", str(PAGE))
        if not size.isdecimal() or not 1 <= int(size) <= PAGE:
            raise bad_parameter(f"maxresults is not a number from 1 to {PAGE}.")
        token = decode(request.query.get("$skiptoken", encode(b"0")), "$skiptoken")
        if not token.isdigit():
            raise bad_parameter("$skiptoken is none that was given out.")
        end = int(token) + int(size)
        link = None
        if end < len(found):
            version = request.query["api-version"]
            skip = encode(str(end).encode())
            link = f"{self._url}{request.path}?api-version={version}&$skiptoken={skip}&maxresults={size}"
        return Answer(200, {"value": found[int(token) : end], "nextLink": link})

    # method, path, the right it takes ("": the operation is the right), what answers
    _routes: ClassVar[list[tuple[str, str, str, Callable[..., Answer]]]] = [
        ("GET", "/keys", "list", _list),
        ("GET", f"/keys/{_NAME}", "get", _get),
        ("PUT", f"/keys/{_NAME}", "import", _import_key),
        ("PATCH", f"/keys/{_NAME}", "update", _update),
        ("DELETE", f"/keys/{_NAME}", "delete", _delete),
        ("POST", f"/keys/{_NAME}/create", "create", _create),
        ("GET", f"/keys/{_NAME}/versions", "list", _list_versions),
        ("GET", f"/keys/{_NAME}/{_VERSION}", "get", _get),
        ("PATCH", f"/keys/{_NAME}/{_VERSION}", "update", _update),
        ("POST", f"/keys/{_NAME}/{_VERSION}/{_OPERATION}", "", _operate),
        ("GET", "/deletedkeys", "list", _list_deleted),
        ("GET", f"/deletedkeys/{_NAME}", "get", _get_deleted),
        ("DELETE", f"/deletedkeys/{_NAME}", "purge", _purge),
        ("POST", f"/deletedkeys/{_NAME}/recover", "recover", _recover),
    ]


def _body(request: Request) -> dict[str, Any]:
    """The JSON body where one belongs; elsewhere there must be none."""
    if request.method in {"GET", "DELETE"} or request.path.lower().endswith("/recover"):
        if request.body:
            raise bad_parameter("A body does not go with this request.")
        return {}
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "UnsupportedMediaType", "The body is not application/json.")
    return parse(request.body, "The body")
