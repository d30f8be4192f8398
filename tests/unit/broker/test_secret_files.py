"""Secrets' files, as hosts, systemd, Kubernetes and Docker hand them over: who may read them, through which links."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker import secret_files
from broker.core.errors import BrokerError
from broker.hsm.config import read_pin
from broker.rpc.tls import read_key
from broker.store.private import password
from broker.targets.token import read_token
from tests.servers.places import MEMORY, in_memory

OTHER_USER, GROUP = 54321, 54322
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

READERS: dict[str, Callable[[Path], object]] = {
    "PIN": read_pin,
    "target's token": lambda path: read_token(path.parent, path.name),
    "database password": password,
    "key": read_key,
}


def put(path: Path, *, mode: int = 0o600, owner: int = -1, group: int = -1, content: bytes = b"s.ecret\n") -> Path:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_bytes(content)
    os.chown(path, owner, group)
    path.chmod(mode)
    return path


def entry(tag: int, may: int, who: int = 0xFFFFFFFF) -> bytes:
    return struct.pack("<HHI", tag, may, who)


def access_list(*readers: bytes, group: int = 0) -> bytes:
    """user::r--, the readers, group::, mask::r--, other::---, as setfacl writes it."""
    return struct.pack("<I", 2) + b"".join(sorted((entry(1, 4), *readers, entry(4, group), entry(16, 4), entry(32, 0))))


def kubernetes(folder: Path, *, mode: int = 0o440, group: int = GROUP) -> Path:
    """A Secret as the kubelet lays it out: a link to a link to a folder that is exchanged as a whole."""
    folder.mkdir()
    folder.chmod(0o1777)
    put(folder / "..2026_11_30" / "secret", mode=mode, owner=0, group=group)
    (folder / "..data").symlink_to("..2026_11_30")
    (folder / "secret").symlink_to("..data/secret")
    return folder / "secret"


def as_another_user(path: Path, *groups: int) -> set[str]:
    """What the readers say in a process of another user: "" or a refusal, each once."""
    answer, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups(groups)
        os.setgid(OTHER_USER)
        os.setuid(OTHER_USER)
        os.write(write, json.dumps([_said(read, path) for read in READERS.values()]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(answer, "rb") as said:
        found = json.loads(said.read())
    os.waitpid(child, 0)
    return set(found)


def _said(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except BrokerError as refusal:
        return refusal.message
    return ""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can get to, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="secrets-", dir=MEMORY if in_memory() else "/tmp") as folder:  # noqa: S108
        os.chmod(folder, 0o711)  # noqa: S103 PTH101  as /etc is
        yield Path(folder)


@needs_root
def test_K14_a_kubernetes_secret_with_fs_group_is_read_by_every_reader(place: Path) -> None:
    secret = kubernetes(place / "mount")
    assert as_another_user(secret, GROUP) == {""}
    (place / "mount" / "..new").symlink_to("..2026_12_01")  # a new version, put in place of the old at once
    put(place / "mount" / "..2026_12_01" / "secret", mode=0o440, owner=0, group=GROUP, content=b"s.new\n")
    (place / "mount" / "..new").replace(place / "mount" / "..data")
    assert as_another_user(secret, GROUP) == {""}


@needs_root
@pytest.mark.parametrize("mode", [0o444, 0o644])
def test_K14_a_secret_that_everybody_can_read_is_refused_with_what_can_be_done_there(place: Path, mode: int) -> None:
    for said in as_another_user(kubernetes(place / f"mount{mode}", mode=mode), GROUP):
        assert "open to other users" in said
        assert "defaultMode: 0440 and fsGroup" in said
        assert "chmod" not in said  # the mount is read-only, and the file is not ours


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "group", "taken"),
    [
        (0o400, OTHER_USER, 0, True),  # Docker and Podman with uid and mode
        (0o440, 0, GROUP, True),
        (0o640, 0, GROUP, False),  # root may write it; that nobody may is how platforms hand secrets over
        (0o440, OTHER_USER, GROUP, False),  # the user's own file can be closed by the user
        (0o460, 0, GROUP, False),
        (0o440, 0, GROUP + 1, False),
        (0o400, OTHER_USER + 1, 0, False),
    ],
)
def test_K14_which_modes_and_owners_are_taken(place: Path, mode: int, owner: int, group: int, *, taken: bool) -> None:
    said = as_another_user(put(place / "secret", mode=mode, owner=owner, group=group), GROUP)
    assert (said == {""}) is taken


@needs_root
@pytest.mark.parametrize(
    ("readers", "group", "taken"),
    [
        ([entry(2, 4, OTHER_USER)], 0, True),  # systemd's LoadCredential
        ([entry(2, 4, 0), entry(2, 4, OTHER_USER)], 0, True),
        ([entry(2, 4, OTHER_USER), entry(2, 4, OTHER_USER + 1)], 0, False),
        ([entry(2, 4, OTHER_USER), entry(8, 4, GROUP + 1)], 0, False),
        ([entry(2, 4, OTHER_USER)], 4, False),  # and the file's own group, root's, which is not ours
        ([entry(2, 4, OTHER_USER), entry(2, 2, OTHER_USER + 1)], 0, True),  # the mask takes that right away
    ],
)
def test_K14_an_access_list_that_names_no_other_reader_is_taken(
    place: Path, readers: list[bytes], group: int, *, taken: bool
) -> None:
    secret = put(place / "secret", mode=0o440, owner=0, group=0)
    os.setxattr(secret, "system.posix_acl_access", access_list(*readers, group=group))
    assert secret.stat().st_mode & 0o777 == 0o440
    assert (as_another_user(secret) == {""}) is taken


def test_K14_a_link_is_followed_within_its_folder_and_to_systemds_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, folder = put(tmp_path / "run" / "vault"), tmp_path / "folder"
    put(folder / "below" / "secret")
    (folder / "inside").symlink_to("below/secret")
    (folder / "outside").symlink_to(elsewhere)
    (folder / "dangling").symlink_to("nothing")
    assert read_token(folder, "inside") == "s.ecret"
    for name in ("outside", "dangling"):
        with pytest.raises(secret_files.UnusableError):
            secret_files.read(folder / name, 100)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "run"))
    assert read_token(folder, "outside") == "s.ecret"


@needs_root
def test_K14_a_link_of_another_users_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "other")
    (tmp_path / "secret").symlink_to("other")
    os.lchown(tmp_path / "secret", OTHER_USER, OTHER_USER)
    with pytest.raises(secret_files.UnusableError, match="another user's"):
        secret_files.read(tmp_path / "secret", 100)


@pytest.mark.parametrize("content", [b"s.ecret", b"s.ecret\n", b"s.ecret\r\n", b"\xef\xbb\xbfs.ecret\r\n"])
def test_K18_a_secret_from_an_editor_of_windows_is_the_same_secret(tmp_path: Path, content: bytes) -> None:
    file = put(tmp_path / "secret", content=content)
    assert {read_pin(file), read_token(tmp_path, "secret"), password(file)} == {"s.ecret"}
