"""NT-10: calls that wait for targets hold threads; no target and no caller may hold so many that others get none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, Self

import pytest

from broker.core.errors import Exhausted, PermissionDenied, Unavailable
from broker.core.kinds import KeyState, KeyType, KeyUsage, VersionState
from broker.core.model import Key, KeyVersion, Target
from broker.core.targets.slots import Slots
from tests.fakes.calls import Clock, call, operator
from tests.fakes.refusals import ending
from tests.worlds.world import World

CLOCK = Clock()


def of(name: str) -> Any:
    return call("TargetService/CheckTarget", operator(name, "admins"), CLOCK)


def taken(slots: Slots, stack: ExitStack, caller: str, target: str) -> str:
    """Take slots until one is refused; how many, and why no more."""
    for number in range(100):
        try:
            stack.enter_context(slots.hold(of(caller), target))
        except Exhausted as refusal:
            return f"{number} {refusal.reason}"
    raise AssertionError("there is no end to the slots")


def free(slots: Slots) -> int:
    """How many slots are left for callers and targets that hold none."""
    with ExitStack() as held, suppress(Exhausted):
        for count in range(100):
            held.enter_context(slots.hold(of(f"caller-{count}"), f"target-{count}"))
        raise AssertionError("there is no end to the slots")
    return count


def test_NT_10_who_takes_all_he_can_get_leaves_as_many_for_the_next() -> None:
    slots = Slots(8)
    with ExitStack() as held:
        assert taken(slots, held, "alice", "hung") == "4 TARGET_BUSY"
        assert taken(slots, held, "bob", "hung") == "0 TARGET_BUSY"
        assert taken(slots, held, "alice", "sound") == "0 CALLER_BUSY"
        assert taken(slots, held, "bob", "sound") == "2 TARGET_BUSY"
        assert taken(slots, held, "carol", "third") == "1 TARGET_BUSY"
        assert taken(slots, held, "dave", "fourth") == "1 TARGETS_BUSY"
    assert taken(slots, held, "dave", "hung") == "4 TARGET_BUSY"
    held.close()
    assert free(slots) == 8
    assert not slots._held  # noqa: SLF001 - that names pile up in memory would not show


@pytest.mark.parametrize("count", [1, 2, 3, 8, 128])
def test_NT_10_there_is_a_slot_for_the_first_and_with_two_for_another(count: int) -> None:
    slots = Slots(count)
    with ExitStack() as held:
        assert int(taken(slots, held, "alice", "hung").split()[0]) == (count + 1) // 2
        second = taken(slots, held, "bob", "sound")
        assert int(second.split()[0]) >= min(1, count - 1)


def test_a_slot_is_given_back_whatever_ends_the_call() -> None:
    slots = Slots(1)
    for kind in (ValueError, SystemExit, GeneratorExit):
        with pytest.raises(kind), slots.hold(of("alice"), "a"):
            raise kind
    with slots.hold(of("alice"), "a"):
        pass


class Hung(World):
    """A world with targets: who connects to the one named ``hung`` waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(clock=CLOCK, connect=self, slots=4)
        self.inside = threading.Semaphore(0)
        self.release = threading.Event()
        for name in ("hung", "sound"):
            self._add(Target(name=name, kind=name, settings={}, kek_id="k", kek_thumbprint="0", created_at=CLOCK()))
        self._add(
            Key(
                name="payments", type=KeyType.EC_P256, usage=KeyUsage.SIGN, exportable=True, labels={}, primary=1,
                owner="operator/alice", state=KeyState.ENABLED, latest=1, created_at=CLOCK(),
            )
        )  # fmt: skip
        self._add(
            KeyVersion(
                key="payments", number=1, hsm_id=b"1" * 16, public_key=b"spki", state=VersionState.ENABLED,
                sealed=False,
                created_at=CLOCK(),
            )
        )  # fmt: skip

    def _add(self, row: Any) -> None:
        with self.store.write(of("alice").outcome()) as write:
            write.add(row)

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> Any:  # noqa: ARG002 (the way to targets)
        return _Port(self, kind)

    def canonical(self, kind: str, settings: Mapping[str, str]) -> dict[str, str]:  # noqa: ARG002
        return dict(settings)

    def uses(self, who: Any, target: str) -> dict[str, Callable[[], object]]:
        """Every method that waits for a target."""

        def asked(method: str) -> Any:
            return call(f"X/{method}", who, CLOCK)

        return {
            "create": lambda: self.targets.create(asked("CreateTarget"), "new", target, {}, ""),
            "check": lambda: self.targets.check(asked("CheckTarget"), target),
            "repin": lambda: self.targets.repin(asked("RepinTarget"), target, "0" * 64),
            "import": lambda: self.imports.import_key(asked("ImportKey"), "payments", 0, target, ""),
            "prove": lambda: self.imports.prove(asked("ProveImport"), "payments", 0, target),
            "export": lambda: self.handover.export(asked("ExportKey"), "payments", 0, target, ""),
            "confirm": lambda: self.handover.confirm(asked("ConfirmImport"), "payments", 0, target),
        }


class _Port:
    """Whatever is asked of the target ``hung`` waits until it is let go; no other one answers."""

    exact_wrap = False
    fresh = False

    def __init__(self, house: Hung, kind: str) -> None:
        self._house = house
        self._kind = kind

    @property
    def files(self) -> Self:
        """Files are taken."""
        return self

    def check_transfer(self) -> None:
        """Asks nobody."""

    def spelled(self, name: str) -> str:
        """As ``check_transfer``."""
        return name

    def supports(self, key_type: KeyType, usage: KeyUsage) -> None:
        """As ``check_transfer``."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._ask

    def _ask(self, *_: object, **__: object) -> Any:
        if self._kind == "hung":
            self._house.inside.release()
            assert self._house.release.wait(60)
        raise Unavailable("TARGET_UNAVAILABLE", "It does not answer.")


@pytest.fixture
def hung() -> Iterator[Hung]:
    made = Hung()
    yield made
    made.release.set()


METHODS = ["create", "check", "repin", "import", "prove", "export", "confirm"]


@pytest.mark.parametrize("method", METHODS)
def test_NT_10_one_target_that_hangs_leaves_the_others_to_everybody(hung: Hung, method: str) -> None:
    alice, bob = operator("alice", "admins"), operator("bob", "admins")
    with ThreadPoolExecutor(2) as threads:
        waiting: list[Future[Any]] = [threads.submit(hung.uses(alice, "hung")["check"]) for _ in range(2)]
        for _ in waiting:
            assert hung.inside.acquire(timeout=200)
        name = "new" if method == "create" else "hung"
        if name == "hung":
            assert ending(hung.uses(bob, "hung")[method]) == "TARGET_BUSY"
        assert ending(hung.uses(alice, "sound")[method]) == "CALLER_BUSY"
        assert ending(hung.uses(bob, "sound")[method]) not in {"TARGET_BUSY", "TARGETS_BUSY", "CALLER_BUSY"}
        hung.release.set()
        assert [len(each.result(200)) for each in waiting] == [5, 5]
    assert free(hung.slots) == 4


@pytest.mark.parametrize("method", METHODS)
def test_NT_10_who_may_not_never_takes_a_slot_nor_waits_for_one(hung: Hung, method: str) -> None:
    mallory = operator("mallory")
    with ExitStack() as held:
        for number in range(4):
            for caller in ("alice", "bob", "carol", "dave"):
                with suppress(Exhausted):
                    held.enter_context(hung.slots.hold(of(caller), f"t{number}-{caller}"))
        assert free(hung.slots) == 0
        with pytest.raises(PermissionDenied):
            hung.uses(mallory, "hung")[method]()
        expected = {"TARGETS_BUSY"}
        assert {ending(hung.uses(operator("erin", "admins"), "hung")[method])} == expected
    with pytest.raises(PermissionDenied):
        hung.uses(mallory, "hung")[method]()
    assert not hung.inside.acquire(blocking=False)
