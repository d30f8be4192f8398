"""Imports to two fakes of Azure while all that can go wrong does, at random.

The token's calls, the vaults' answers and the broker's life are disturbed; then nothing is any more, and every import
is asked for again. ``storm_verdict`` says what must be true by then.
"""

from __future__ import annotations

import random
import re
import signal
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from broker.core.imports.places import ARRIVAL_GRACE
from broker.core.model import Import
from tests.contracts.store.samples import entry
from tests.live.hsm.test_shim_faults import CODES
from tests.servers.azure_key_vault import (
    Effect,
    FakeVault,
    conflict,
    forbidden,
    insufficient_claims,
    key_not_found,
    throttled,
    unauthorized,
    unavailable,
)
from tests.servers.azure_key_vault import Refused as Answer
from tests.servers.azure_key_vault.faults import Faults
from tests.servers.azure_key_vault.refusals import deleted_but_recoverable
from tests.servers.live import Client, within
from tests.servers.live_azure import AzureLive
from tests.servers.live_load import BROKEN
from tests.servers.refusals import Refused
from tests.servers.stopped import store_of

RSA_2048, EC_P256, EC_P521, EC_P256K, AES_256 = 1, 4, 6, 7, 10
SIGN, ENCRYPT = 1, 2
PENDING, PROVEN, FAILED = 1, 2, 3
ROUND = 8
"""Imports that are under way together, three at a time."""

KINDS = (EC_P256, EC_P256, EC_P521, EC_P256K, RSA_2048, AES_256, AES_256)
FAULTS: dict[str, Answer | Effect | str] = {
    "401": unauthorized(), "401, claims": insufficient_claims(), "403": forbidden(),
    "403, role": forbidden("ForbiddenByRbac"), "403, firewall": forbidden("ForbiddenByFirewall"),
    "403, disabled": forbidden("KeyDisabled"), "404": key_not_found("x"), "409": conflict(),
    "409, going": conflict("ObjectIsBeingDeleted"), "409, deleted": deleted_but_recoverable("x"),
    "429": throttled(1), "429, long": throttled(12), "429, bare": throttled(None), "503": unavailable(),
    "cut": Effect.CUT, "answer lost": Effect.LOSE_ANSWER, "another key": Effect.OTHER_KEY, "hang": Effect.HANG,
    "KEK swapped": "swap", "a right taken": "deny",
}  # fmt: skip
"""Every switch of the fake."""

ON_THE_WAY = frozenset({"IMPORT_IN_PROGRESS", "IMPORT_UNSETTLED", "TARGET_UNREACHABLE"})
"""How an import ends whose upload was not answered, or of which nobody could look whether it is there: it may come."""

ROADS = ("PUT /keys/{}$", "GET /keys/{}", "POST /keys/{}", "PATCH /keys/{}", "GET /keys/kek")
CALLS = (
    "C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue", "C_CreateObject",
    "C_GenerateKey", "C_WrapKey", "C_DestroyObject", "C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt",
    "*",
)  # fmt: skip


class Deadly(Faults):
    """The faults of a vault at one of whose requests the broker may die."""

    def __init__(self, storm: Storm) -> None:
        super().__init__()
        self._storm = storm

    def take(self, method: str, path: str) -> Answer | Effect | None:
        late = self._storm.dies_at(f"{method} {path}")
        if late is None:
            return super().take(method, path)
        self._storm.kill()
        return Effect.LOSE_ANSWER if late else Effect.CUT


@dataclass(eq=False)
class Journey:
    """One import: of this version of this key to that target, as it was asked for."""

    name: str
    kind: int
    version: int
    target: str
    vault: FakeVault
    terms: dict[str, Any] = field(default_factory=dict)
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    remote_names: list[str] = field(default_factory=list)
    other_key: bool = False  # the vault may have kept another one under its name
    ended: str = ""
    said: str = ""  # the sentence of the last refusal

    @property
    def usable(self) -> bool:
        """Whether it is to be enabled there."""
        return bool(self.terms.get("enabled", True))


class Storm:
    """A broker, its vaults, and the keys that have been on their way so far. ``hang``: also wait for silent vaults."""

    def __init__(self, live: AzureLive, seed: int, *, hang: bool) -> None:
        self.live, self.hang = live, hang
        self.random = random.Random(seed)  # noqa: S311 (no secret)
        self.journeys: list[Journey] = []
        self.counts: Counter[str] = Counter()
        self._lookalike = rsa.generate_private_key(65537, 2048)
        self._keks = {vault: vault.versions("kek")[-1].material for vault in (live.premium, live.hsm)}
        self._codes: list[str] = []
        self._switches: list[str] = []
        self._death: tuple[re.Pattern[str], bool, list[int]] | None = None
        self._lock = threading.Lock()
        for vault in (live.premium, live.hsm):
            vault.faults = Deadly(self)

    # ---- the broker's life ---------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL; when this returns it runs no more."""
        process = self.live.broker.process
        assert process is not None
        if process.poll() is None:
            self.counts["killed at a request"] += 1
            process.send_signal(signal.SIGKILL)
            process.wait(200)

    def dies_at(self, line: str) -> bool | None:
        """None: not now; else whether the request is handled all the same."""
        with self._lock:
            if self._death is None or not self._death[0].search(line):
                return None
            self._death[2][0] -= 1
            if self._death[2][0]:
                return None
            late, self._death = self._death[1], None
            return late

    @property
    def dead(self) -> bool:
        """Whether the broker is to be started again."""
        process = self.live.broker.process
        return process is None or process.poll() is not None

    def calm(self) -> Client:
        """No fault any more, and a broker that runs."""
        self.live.shim.obey()
        with self._lock:
            self._death = None
        for vault in (self.live.premium, self.live.hsm):
            vault.faults.clear()
            vault.denied.clear()
        if self.dead:
            self.counts["restarts"] += 1
            self.live.broker.kill()
            self.live.broker.start()
        return self.live.client()

    # ---- one round -----------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Eight imports, disturbed, asked for again and again; then once more in peace."""
        client = self.calm()
        under_way = [self._born(client) for _ in range(ROUND)]
        self.journeys += under_way
        self._disturb_token()
        disturbed = [self._disturb_vault(journey) for journey in under_way]
        assert all(disturbed)
        doom = self._doom(under_way)
        with ThreadPoolExecutor(3) as travellers:
            going = [travellers.submit(self._travel, client, one) for one in under_way]
            if doom:
                doom.start()
            for one in going:
                one.result(200)
        if doom:
            doom.join()
        for vault in self._keks:
            self._put_right(vault)
            self.counts["requests disturbed"] += len(vault.faults.fired)
            vault.faults.fired.clear()
        self.counts["calls disturbed"] += sum(call.injected for call in self.live.shim.calls())
        self.counts["rounds survived"] += not self.dead
        client = self.calm()
        for journey in under_way:
            self.settle(client, journey)

    def _born(self, client: Client) -> Journey:
        """A fresh key, or a further version of one that is at its target."""
        targets = {"premium": self.live.premium, "hsm": self.live.hsm}
        old = [one for one in self.journeys if one.ended == "proven" and one.kind != AES_256]
        if old and self.random.random() < 0.15:
            before = self.random.choice(old)
            made = client.ask("RotateKey", name=before.name).key
            for one in old:
                one.ended = "followed" if one.name == before.name else one.ended
            journey = Journey(before.name, before.kind, made.primary_version, before.target, before.vault)
            journey.remote_names = before.remote_names[-1:]
        else:
            kind = self.random.choice(KINDS)
            target = "hsm" if kind == AES_256 else self.random.choice(list(targets))
            name = f"s-{uuid.UUID(int=self.random.getrandbits(128)).hex[:12]}"
            usage = ENCRYPT if kind == AES_256 else SIGN
            client.ask("CreateKey", name=name, type=kind, usage=usage, exportable=True)
            journey = Journey(name, kind, 1, target, targets[target], remote_names=[name])
        journey.terms = self._terms(journey)
        return journey

    def _terms(self, journey: Journey) -> dict[str, Any]:
        drawn = self.random.random()
        only = "encrypt" if journey.kind == AES_256 else "verify"
        later = {"seconds": int((datetime.now(UTC) + timedelta(days=30)).timestamp())}
        if drawn < 0.5:
            return {}
        return self.random.choice([
            {"tags": {"team": "pay"}}, {"operations": [only]}, {"enabled": False}, {"not_before": later},
            {"tags": {"a": "b"}, "operations": [only], "enabled": False},
        ])  # fmt: skip

    # ---- what goes wrong -----------------------------------------------------------------------------------------

    def _disturb_token(self) -> None:
        """Some codes at some calls; each code has its turn before any comes again."""
        rules = []
        for _ in range(9):
            if not self._codes:
                self._codes = self.random.sample(sorted(CODES), len(CODES))
            call, late = self.random.choice(CALLS), " late" if self.random.random() < 0.3 else ""
            name = self._codes.pop()
            self.counts[f"code {name}"] += 1
            rules.append(f"{call} return {CODES[name]} times=1 from={self.random.randint(1, 12)}{late}")
        if self.random.random() < 0.2:
            late = self.random.choice(["", " late"])
            rules.append(f"{self.random.choice(CALLS)} kill times=1 from={self.random.randint(1, 20)}{late}")
        self.live.shim.obey(f"seed {self.random.randint(1, 1 << 30)}", *rules)

    def _disturb_vault(self, journey: Journey) -> list[str]:
        """One to three switches, mostly at this import's own requests."""
        done = []
        for _ in range(self.random.choice([1, 1, 2, 3])):
            if not self._switches:
                self._switches = self.random.sample(sorted(FAULTS), len(FAULTS))
            name = self._switches.pop()
            if name == "hang" and not self.hang:  # that takes ten to twenty seconds each time
                name = "cut"
            self.counts[f"switch {name}"] += 1
            done.append(name)
            self._turn(name, journey)
        return done

    def _turn(self, name: str, journey: Journey) -> None:
        what, vault = FAULTS[name], journey.vault
        road = "^" + self.random.choice(ROADS).format(journey.remote_names[-1])
        if what == "swap":
            vault.versions("kek")[-1].material = self._lookalike
        elif what == "deny":
            vault.denied.add(self.random.choice(["import", "get", "list", "sign", "decrypt", "update"]))
        elif what is Effect.OTHER_KEY:
            journey.other_key = True
            vault.faults.add(what, on=f"^PUT /keys/{journey.remote_names[-1]}$")
        else:
            assert not isinstance(what, str)
            vault.faults.add(what, on=road, times=self.random.choice([1, 1, 1, 2, 5]))

    def _doom(self, under_way: list[Journey]) -> threading.Timer | None:
        """In every other round the broker dies: at a request before or after it is handled, or at any time."""
        drawn = self.random.random()
        late = self.random.random() < 0.5
        if drawn < 0.15:
            road = self.random.choice(ROADS).format(self.random.choice(under_way).remote_names[-1])
            self._death = re.compile("^" + road), late, [1]
        elif drawn < 0.3:
            self._death = re.compile("/keys/"), late, [self.random.randint(1, 40)]
        elif drawn < 0.4:
            return threading.Timer(self.random.uniform(0, 1), self.kill)
        return None

    # ---- the way there -------------------------------------------------------------------------------------------

    def _travel(self, client: Client, journey: Journey) -> None:
        """Up to three tries under one request id."""
        for _ in range(3):
            if self.ask(client, journey) in {"proven", "away"}:
                return

    def ask(self, client: Client, journey: Journey) -> str:
        """One try, and how it ended: "proven", "away", or the reason of the refusal."""
        fields = {"name": journey.name, "version": journey.version, "target": journey.target}
        if journey.remote_names[-1] != journey.name:
            fields["remote_name"] = journey.remote_names[-1]
        try:
            done = client.ask("ImportKey", **fields, terms=journey.terms, request_id=journey.request_id)
        except Refused as error:
            journey.ended, journey.said = self._told(error), str(error)
        else:
            row = getattr(done, "import")
            assert row.state == PROVEN, row
            journey.ended = "proven"
        self.counts[f"ended {journey.ended}"] += 1
        if journey.ended in {"KEK_CHANGED", "TARGET_DENIED"}:  # seen once, so that others get further
            self._put_right(journey.vault)
        return journey.ended

    def _put_right(self, vault: FakeVault) -> None:
        vault.versions("kek")[-1].material = self._keks[vault]
        vault.denied.clear()

    def _told(self, refusal: Refused) -> str:
        """The reason; without a word of the broker's, it was killed just now."""
        if refusal.reason:
            assert refusal.code in {"UNAVAILABLE", "FAILED_PRECONDITION", "INVALID_ARGUMENT"}, refusal
            return refusal.reason
        assert refusal.code in BROKEN, refusal
        if refusal.code == "DEADLINE_EXCEEDED":  # of a vault that is silent more than once; the broker goes on
            return "late"
        within(10, lambda: self.dead)
        return "away"

    def settle(self, client: Client, journey: Journey) -> None:
        """In peace: proven, or an upload that may still be on its way, or a name that another key has now."""
        ended = self.ask(client, journey)
        if ended == "PROOF_FAILED" and journey.other_key:  # what could not be tried before is found out now
            ended = self.ask(client, journey)
        if ended == "TARGET_NAME_TAKEN":
            assert journey.other_key, f"{journey}: its name is taken, and nobody put another key there"
            if journey.version == 1:
                journey.remote_names.append(f"{journey.name}-again")
                journey.request_id = str(uuid.uuid4())
                ended = self.ask(client, journey)
        assert ended in {"proven", "TARGET_NAME_TAKEN", *ON_THE_WAY}, f"{journey}: {ended}"

    def let_the_grace_pass(self) -> None:
        """As if all brokers had been away for longer than an upload can be on its way."""
        assert self.live.broker.terminate() == 0
        with store_of(self.live.broker.folder) as store, store.write(entry()) as write:
            for row in write.page(Import, limit=10_000):
                write.replace(row, replace(row, started_at=row.started_at - ARRIVAL_GRACE - timedelta(seconds=1)))
        self.live.broker.start()
        self.counts["still on their way"] = sum(one.ended in ON_THE_WAY for one in self.journeys)
        client = self.live.client()
        for journey in self.journeys:
            if journey.ended in ON_THE_WAY:
                self.settle(client, journey)
                assert journey.ended not in ON_THE_WAY, journey
