"""A copied folder on the token of the broker that it was copied from: the later one of the two does not start."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.servers.live import Live, free_address


def copied(made: Live, folder: Path) -> Live:
    """The same broker in another folder, at other addresses and with a journal of its own name, on the same token."""
    other = Live(folder)
    shutil.copytree(made.folder, folder)
    text = other.config.read_text().replace(f'"{made.folder}/softhsm', '"TOKEN').replace(str(made.folder), str(folder))
    for address in (made.address, made.pipelines):
        text = text.replace(address, free_address())
    other.config.write_text(text.replace('"TOKEN', f'"{made.folder}/softhsm').replace("sqlite:///TOKEN", "sqlite:///"))
    return other


def test_K_15_a_copied_folder_is_no_second_broker_on_the_same_token(tmp_path: Path) -> None:
    one = Live(tmp_path / "one")
    done = one.command(
        "init", str(one.folder), "--operators-address", free_address(), "--pipelines-address", free_address()
    )
    assert done.returncode == 0, done.stderr
    two = copied(one, tmp_path / "two")
    one.start()
    try:
        refused = two.command("serve", "--config", str(two.config))
        assert refused.returncode == 1, refused
        assert refused.stderr.count("\n") == 1
        assert "(TOKEN_CLAIMED)" in refused.stderr
        assert f"{one.folder}/journal" in refused.stderr  # which other one
        checked = two.command("check", "--config", str(two.config))
        assert [one for one in checked.stdout.splitlines() if one.startswith("FAIL  store") and "claimed" in one]
        with one.client() as admin:
            assert admin.ask("WhoAmI").token_trouble == ""
    finally:
        one.terminate()
    accepted = two.command("accept-restore", "--config", str(two.config))
    assert (accepted.returncode, "the token is this database's now" in accepted.stdout) == (0, True), accepted
    back = one.command("serve", "--config", str(one.config))
    assert (back.returncode, "(TOKEN_CLAIMED)" in back.stderr) == (1, True), back
    again = two.command("accept-restore", "--config", str(two.config))
    assert "nothing was changed" in again.stdout
    one.close()
