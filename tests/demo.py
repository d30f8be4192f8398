"""`make demo`: the two main jobs on real parts: SoftHSM, a real OpenBao, the real broker, driven by the real CLI.

Two parts are this project's own, and the demo says so: the vault that stands in for Azure's, and the shim that makes
SoftHSM 2.6.1 wrap exactly by RFC 5649, which such a vault demands.

Each step says what happened and how long it took. The last line is ``demo: ok``; any failure ends it non-zero with
the reason.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from azure.core.exceptions import AzureError
from azure.keyvault.keys import JsonWebKey
from azure.keyvault.keys.crypto import SignatureAlgorithm
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.servers import openbao
from tests.servers.azure_key_vault import FakeVault
from tests.servers.bao_issuer import AUDIENCE, BaoIssuer
from tests.servers.fake_azure import crypto_client, key_client
from tests.servers.shim import put_shim_before

BIN = Path(sys.executable).parent
MESSAGE = b"pay 10 to bob\n"


class DemoError(Exception):
    """A step did not end as it must."""


class Demo:
    """The running parts, and the CLI with the first operator's profile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.profile = folder / "broker" / "profile"

    def cli(self, *words: str, stdin: bytes = b"", expect: int = 0, profile: Path | None = None) -> bytes:
        """Run one `broker` command as an operator would; its standard output."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "BROKER_PROFILE": str(profile or self.profile),
        }
        done = subprocess.run([BIN / "broker", *words], input=stdin, capture_output=True, env=environment, check=False)
        if done.returncode != expect:
            said = done.stderr.decode(errors="replace").strip()
            raise DemoError(f"`broker {' '.join(words)}` ended with {done.returncode}, not {expect}: {said}")
        return done.stdout if expect == 0 else done.stderr

    def answer(self, *words: str, stdin: bytes = b"") -> dict[str, object]:
        """As ``cli``, its JSON parsed."""
        parsed: dict[str, object] = json.loads(self.cli(*words, "--format", "json", stdin=stdin))
        return parsed

    def listed(self, noun: str) -> list[dict[str, object]]:
        """All sessions, or all leases."""
        found: list[dict[str, object]] = json.loads(self.cli(noun, "list", "--format", "json"))
        return found

    def states(self, noun: str) -> str:
        """The states of all of them."""
        return ", ".join(str(each["state"]) for each in self.listed(noun))


def say(text: str) -> None:
    print(f"      {text}", flush=True)


@contextmanager
def step(number: list[int], title: str) -> Iterator[None]:
    """Print a step's title before and its time after."""
    number[0] += 1
    print(f"{number[0]:>3}.  {title}", flush=True)
    start = time.monotonic()
    yield
    say(f"({(time.monotonic() - start) * 1000:.0f} ms)")


@contextmanager
def running_broker(folder: Path, bao: openbao.OpenBao, vault: FakeVault) -> Iterator[subprocess.Popen[bytes]]:
    """`broker init`, then `broker serve` until the block ends; it must drain and end with 0 on SIGTERM."""
    init = [str(BIN / "broker"), "init", str(folder), "--allow-target", bao.host, "--allow-issuer", bao.host]
    init += ["--operators-address", "127.0.0.1:0", "--pipelines-address", "127.0.0.1:0"]
    made = subprocess.run(init, capture_output=True, text=True, check=False)
    if made.returncode:
        raise DemoError(f"`broker init` ended with {made.returncode}: {made.stderr.strip()}")
    config = folder / "broker.toml"
    put_shim_before(config, folder)
    described: dict[str, object] = {"host": vault.host, "kind": vault.kind, "ca_file": str(vault.ca_file)}
    described |= {"token_file": str(vault.token_file), "targets": ["vault"]}
    with config.open("a", encoding="utf-8") as file:
        file.write("\n[[targets.private_vaults]]\n")
        file.writelines(f"{name} = {json.dumps(value)}\n" for name, value in described.items())
    command = [str(BIN / "broker"), "serve", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(folder.parent / "broker.log").open("wb"))
    try:
        for line in process.stdout or ():
            if line.strip() == b"broker: ready":
                break
        else:
            raise DemoError("the broker did not start:\n" + (folder.parent / "broker.log").read_text()[-2000:])
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(200)
    if code != 0:
        raise DemoError(f"the broker ended with {code} on SIGTERM")


def main_job(demo: Demo, bao: openbao.OpenBao, vault: FakeVault, number: list[int]) -> None:
    """Generated in the HSM, imported to two targets, proven, used everywhere, rotated."""
    with step(number, "What the HSM is, and what it was found to do"):
        hsm = demo.answer("hsm")
        say(f"{hsm['model']}, token {hsm['token_label']}; wraps exactly by RFC 5649: {hsm['exact_wrap']}")
        say("(through this project's shim, which is the broker's PKCS#11 module here: SoftHSM 2.6.1 alone pads first)")
    with step(number, "Register OpenBao as a target; its key-exchange key is pinned"):
        bao.write_token(demo.folder / "broker" / "credentials", "bao")
        added = demo.answer(
            "target", "add", "vault", "bao", "--address", bao.address, "--mount", bao.mount,
            "--ca-file", str(bao.ca_file),
        )  # fmt: skip
        say(f"KEK pinned: sha256 {str(added['kek_thumbprint'])[:16]}…")
    with step(number, "A key is generated in the HSM"):
        demo.answer("key", "create", "payments", "--type", "ec-p256", "--usage", "sign", "--exportable")
        pem = demo.cli("key", "public", "payments")
        say(f"payments, ec-p256; its private half has never been outside the HSM; public key {len(pem)} bytes of PEM")
    with step(number, "It is wrapped in the HSM, imported to OpenBao, read back, and proven by use"):
        proven = demo.answer("key", "import", "payments", "--target", "bao")
        say(f"{proven['remote_name']} version {proven['remote_version']} at bao: {proven['state']}")
    with step(number, "Signed in the HSM, verified at OpenBao"):
        signature = demo.cli("key", "sign", "payments", stdin=MESSAGE)
        body = {"input": _b64(MESSAGE), "signature": "vault:v1:" + _b64(signature)}
        if not bao.request("POST", f"{bao.mount}/verify/payments", body)["data"]["valid"]:
            raise DemoError("OpenBao did not accept the HSM's signature")
        say("OpenBao says: valid")
    azure(demo, vault, number)
    theirs = demo.folder / "theirs.sig"
    with step(number, "Signed at OpenBao and at the vault, both verified with the one public key that the HSM gave"):
        signatures = {"OpenBao": signed_by(bao), "the vault": signed_by_vault(vault)}
        for place, signature in signatures.items():
            check(pem, signature, place)
            say(f"{place}'s signature of {len(signature)} bytes: valid")
        theirs.write_bytes(signatures["OpenBao"])
    with step(number, "Rotated in the HSM and at both targets; not one signature fails meanwhile, the old ones verify"):
        say(f"{rotated(demo)} signatures were made and verified meanwhile")
        for row in json.loads(demo.cli("key", "where", "payments", "--format", "json")):
            say(f"version {row['version']} at {row['target']}: {row['state']}")
        demo.cli("key", "verify", "payments", "--version", "1", "--signature", str(theirs), stdin=MESSAGE)


def rotated(demo: Demo) -> int:
    """Rotate, and sign and verify until the rotation is over everywhere; how often that was."""
    demo.answer("key", "rotate", "payments", "--grace", "0s", "--no-wait")
    count = 0
    former = demo.cli("key", "public", "payments", "--version", "1")
    while True:
        signature = demo.cli("key", "sign", "payments", stdin=MESSAGE)
        try:
            check(demo.cli("key", "public", "payments"), signature, "the HSM")
        except DemoError:  # made by the version before the one that is in force by now
            check(former, signature, "the HSM")
        count += 1
        if not demo.answer("operation", "list", "key/payments", "--live"):
            return count


def azure(demo: Demo, vault: FakeVault, number: list[int]) -> None:
    """The same key to a second target, and another one carried there by hand."""
    with step(number, "Register Azure Key Vault: a stand-in of this project's own, strict, in place of Microsoft's"):
        added = demo.answer(
            "target", "add", "azure-key-vault", "vault", "--vault-url", vault.url, "--credential", "token-file",
            "--kek", "kek", "--create-kek",
        )  # fmt: skip
        say(f"an import-only KEK was made there and pinned: sha256 {str(added['kek_thumbprint'])[:16]}…")
    with step(number, "The very same key is imported there as well, read back, and proven by use"):
        demo.answer("key", "import", "payments", "--target", "vault", "--operation", "sign", "--tag", "team=billing")
        for row in json.loads(demo.cli("key", "where", "payments", "--format", "json")):
            say(f"payments at {row['target']}: version {row['remote_version']}, {row['state']}")
    with step(number, "Another key goes there by hand: exported to a file, uploaded by Microsoft's client, confirmed"):
        demo.answer("key", "create", "offline", "--type", "rsa-2048", "--usage", "sign", "--exportable")
        file = demo.folder / "offline.byok"
        demo.answer("key", "export", "offline", "--target", "vault", "--out", str(file))
        with key_client(vault) as client:
            client.import_key("offline", JsonWebKey(kty="RSA-HSM", t=file.read_bytes()), hardware_protected=True)
        confirmed = demo.answer("key", "confirm", "offline", "--target", "vault")
        say(f"{file.name}, {file.stat().st_size} bytes; offline at vault: {confirmed['state']}")


def signed_by(bao: openbao.OpenBao) -> bytes:
    """What OpenBao signs with its copy."""
    made = bao.request("POST", f"{bao.mount}/sign/payments", {"input": _b64(MESSAGE)})["data"]["signature"]
    return _unb64(made.rpartition(":")[2])


def signed_by_vault(vault: FakeVault) -> bytes:
    """What the vault signs with its copy, asked by Microsoft's client; as DER, like OpenBao's."""
    kid = f"{vault.url}/keys/payments/{vault.versions('payments')[-1].version}"
    with crypto_client(vault, kid) as client:
        made = client.sign(SignatureAlgorithm.es256, hashlib.sha256(MESSAGE).digest()).signature
    return encode_dss_signature(int.from_bytes(made[:32], "big"), int.from_bytes(made[32:], "big"))


def check(pem: bytes, signature: bytes, place: str) -> None:
    """Return if the signature is one of MESSAGE under this public key; no broker is asked."""
    key = load_pem_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DemoError("the HSM's public key is not of an elliptic curve")
    try:
        key.verify(signature, MESSAGE, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise DemoError(f"the signature made at {place} does not verify") from error


def who_may(demo: Demo, number: list[int]) -> None:
    """A second operator with fewer rights, and why they are refused."""
    auditor = demo.folder / "auditor"
    with step(number, "A second operator, an auditor, gets a short-lived certificate signed in the HSM"):
        demo.cli("operator", "add", "eve", "--group", "auditors", "--out", str(auditor))
        who = json.loads(demo.cli("operator", "whoami", "--format", "json", profile=auditor))
        say(f"{who['principal']}, of {', '.join(who['groups'])}")
    with step(number, "The auditor tries to make a key, and is refused"):
        words = ("key", "create", "mine", "--type", "aes-256", "--usage", "encrypt")
        say(demo.cli(*words, expect=3, profile=auditor).decode().strip().splitlines()[0])


GRANT = """
@id("deploy") permit (principal == Pipeline::"deploy", action == Action::"FetchSecrets", resource in Folder::"shop");
"""
JOB = """
import os, sys
print("inside the job:", len(os.environ["DB_PASSWORD"]), "and", len(os.environ["API_KEY"]), "characters", flush=True)
print("printed by mistake:", os.environ["DB_PASSWORD"], flush=True)
sys.stdin.read()
"""


def second_job(demo: Demo, bao: openbao.OpenBao, number: list[int]) -> None:
    """A CI job with an identity token and nothing else gets its secrets in one call, and loses them when it dies."""
    with step(number, "OpenBao acts as the CI: it issues identity tokens to jobs (OpenID Connect)"):
        ci = BaoIssuer(bao)
        (demo.folder / "issuer.pem").write_text(bao.ca_pem)
        added = demo.answer(
            "trust", "add", "deploy", "--preset", "generic", "--issuer", ci.url, "--audience", AUDIENCE,
            "--pipeline", "deploy", "--match", f"sub={ci.entity}", "--match", f"project_id={ci.project}",
            "--reusable", "--issuer-ca-file", str(demo.folder / "issuer.pem"),
        )  # fmt: skip
        say(f"trust rule deploy, grade {added['grade']}: jobs of project {ci.project} become pipeline/deploy")
    with step(number, "Two secrets, and a policy that lets pipeline/deploy fetch what is in shop/"):
        demo.cli("secret", "put", "shop/db", "--field", "password=@-", stdin=b"correct horse battery staple")
        demo.cli("secret", "put", "shop/api", "--field", "key=@-", stdin=b"0123456789abcdef")
        text = demo.folder / "policy.cedar"
        text.write_bytes(demo.cli("policy", "show") + GRANT.encode())
        demo.cli("policy", "set", "--yes", str(text))
    with step(number, "A job runs: one call for login and both secrets; its output is masked"):
        job = started_job(demo, ci)
        for _ in range(2):
            say((job.stdout.readline() if job.stdout else b"").decode().strip())
        (session,) = demo.listed("session")
        say(f"session of {session['principal']}: {session['state']}; leases: {demo.states('lease')}")
        if session["state"] != "active" or demo.states("lease") != "active, active":
            raise DemoError("the job's session and its two leases are not alive")
    with step(number, "The runner is killed (SIGKILL): nobody is left to end the session, so it ends by itself"):
        job.kill()
        job.wait()
        died = time.monotonic()
        while demo.states("session") != "ended" or demo.states("lease") != "expired, expired":
            if time.monotonic() - died > 60:
                raise DemoError("the session outlived its runner by a minute")
            time.sleep(0.5)
        say(f"session: ended; leases: expired, expired, {time.monotonic() - died:.0f} s after the runner died")


def started_job(demo: Demo, ci: BaoIssuer) -> subprocess.Popen[bytes]:
    """A runner with an identity token, in an environment of its own."""
    token = demo.folder / "identity-token"
    token.touch(mode=0o600)
    token.write_text(ci.token())
    settings = (demo.folder / "broker" / "broker.toml").read_text().splitlines()
    address = next(json.loads(line.partition(" = ")[2]) for line in settings if line.startswith("pipelines_address"))
    environment = {
        "PATH": os.environ["PATH"],
        "BROKER_PIPELINES_ADDRESS": address,
        "BROKER_CA_FILE": str(demo.profile / "ca.pem"),
        "BROKER_ID_TOKEN_FILE": str(token),
    }
    words = ["--secret", "DB_PASSWORD=broker://shop/db#password", "--secret", "API_KEY=broker://shop/api#key"]
    command = [str(BIN / "broker"), "run", "--ttl", "15", *words, "--", sys.executable, "-c", JOB]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def proof(demo: Demo, number: list[int]) -> None:
    """Everything that happened, checked offline from the files."""
    with step(number, "The audit journal, verified offline with nothing but the files and the public key"):
        key = demo.folder / "audit.pem"
        key.write_bytes(demo.cli("audit", "key"))
        demo.cli("audit", "sign-head")
        found = demo.cli("audit", "verify", str(demo.folder / "broker" / "journal"), "--public-key", str(key))
        say(found.decode().strip().splitlines()[-1])


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text)


def run(folder: Path) -> None:
    """All steps, in a folder of their own."""
    number, demo = [0], Demo(folder)
    with step(number, "Start a real OpenBao (TLS, raft storage) on a free loopback port"):
        (folder / "openbao").mkdir()
        bao = openbao.started(folder / "openbao")
        say(f"{bao.address}, transit mounted")
    try:
        with ExitStack() as running:
            (folder / "vault").mkdir()
            vault = running.enter_context(FakeVault(folder / "vault"))
            with step(number, "Start the broker: a SoftHSM token, its own CAs, the first operator"):
                running.enter_context(running_broker(folder / "broker", bao, vault))
                say("serving gRPC over TLS 1.3; operators by client certificate")
            main_job(demo, bao, vault, number)
            who_may(demo, number)
            second_job(demo, bao, number)
            proof(demo, number)
    finally:
        bao.close()


def main() -> int:
    """Run in a temporary folder; 0 and ``demo: ok``, or 1 and the reason."""
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="broker-demo-") as folder:
            run(Path(folder))
    except (DemoError, AssertionError, OSError, AzureError) as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    print(f"all steps took {time.monotonic() - start:.1f} s\ndemo: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
