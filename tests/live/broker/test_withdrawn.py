"""BY-05 in a broker that runs: the alarm stands until the target has disabled what could not be proven."""

from __future__ import annotations

from broker.targets.vault.policy import RIGHTS, line, policy
from tests.servers.live import Live, within
from tests.servers.openbao import OpenBao

EC_P256, SIGN = 4, 1
FAILED, DISABLING, UNKNOWN = 3, 5, 6


def test_BY_05_FT_39_the_alarm_stands_until_it_is_disabled_and_a_lost_target_can_be_removed(
    live_own: Live, openbao: OpenBao
) -> None:
    credentials, mount = live_own.folder / "credentials", openbao.mount
    lacking = {"sign/+/+", "keys/+/soft-delete"}
    text = "".join(line(f"{mount}/{at}", of) for at, of in RIGHTS.items() if at not in lacking)
    openbao.write_token(credentials, token=openbao.token_for(text, "lacking"))
    with live_own.client() as admin:

        def state(name: str) -> int:
            return int(admin.ask("ListImports", name=name).imports[0].state)

        for name in ("withdrawn", "lost"):
            admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN, exportable=True)
        told = admin.refusal("ImportKey", name="withdrawn", target="bao")
        assert (told.code, told.reason) == ("FAILED_PRECONDITION", "REMOTE_KEY_STILL_ENABLED")
        assert state("withdrawn") == DISABLING
        within(20, lambda: b"a key that is not proven may still be used at a target" in live_own.log.read_bytes())
        findings = {one.name: one for one in admin.ask("CheckTarget", name="bao").findings}
        assert not findings["copies"].passed
        openbao.write_token(credentials, token=openbao.token_for(policy(mount), "whole"))
        within(60, lambda: state("withdrawn") == FAILED)
        assert openbao.request("GET", f"{mount}/keys/withdrawn")["data"]["soft_deleted"] is True
        admin.ask("ImportKey", name="lost", target="bao")
        assert admin.refusal("DeleteTarget", name="bao").reason == "TARGET_IN_USE"
        admin.ask("DeleteTarget", name="bao", copies_unknown=True)
        assert (state("lost"), state("withdrawn")) == (UNKNOWN, UNKNOWN)  # what is deleted there can be recovered
