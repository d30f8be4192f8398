"""What real programs print of real-looking values is masked, and what is no secret stays readable."""

from __future__ import annotations

import base64
import json
import random

import pytest
from broker_cli.mask import MASK, Masker, spoken
from broker_cli.mask_decode import LEVELS, decode
from broker_cli.mask_targets import skeleton

from tests.fakes.cost import cost
from tests.unit.run import encoders

SAMPLE = 40


def masked(values: list[bytes], *pieces: bytes) -> bytes:
    masker = Masker(values)
    return b"".join(masker.feed(piece) for piece in pieces) + masker.finish()


def shown_of(value: str, printed: bytes, chosen: random.Random) -> tuple[bytes, int]:
    """What is shown of ``printed``, and how much of it because of pauses."""
    masker, shown, paused = Masker([value.encode()]), b"", 0
    for piece in encoders.cut(b"<< " + printed + b" >>\n", chosen):
        shown += masker.feed(piece)
        if chosen.random() < 0.3:
            some = masker.relax()
            shown, paused = shown + some, paused + len(some)
    return shown + masker.finish(), paused


def seen(name: str, text: bytes) -> tuple[int, int]:
    """How many letters and digits are there, and how much else, but for blanks and the quotes of writers."""
    text = text.replace(MASK, b" ")
    if "base64" in name:
        return len(text.translate(None, b"<> \n=")), 0
    for _ in range(LEVELS):
        text = decode(text)
    bones = len(skeleton(text))
    return bones, len(text.translate(None, b" \t\r\n\\'\"`$+")) - bones


def faults(name: str, encode: encoders.Encoder, values: list[str], seed: int) -> list[tuple[str, bytes, bytes]]:
    """Values of which something is seen beside their surroundings: six bits thrice at the ends of base64 may be."""
    chosen = random.Random(seed)  # noqa: S311  reproducible
    around = chosen.choices(encoders.AROUND, k=len(values))
    texts = encode([before + value + after for value, (before, after) in zip(values, around, strict=True)])
    others = encode([before + after for before, after in around])
    found = []
    for value, printed, other in zip(values, texts, others, strict=True):
        if len(skeleton(value.encode())) < 4 and "\\" in value:  # may be missed, says behaviour.md
            continue
        shown, paused = shown_of(value, printed, chosen)
        letters, marks = seen(name, b"<< " + other + b" >>")
        left = seen(name, shown)
        more = paused + (3 if "base64" in name else 0)
        hidden = "base64" not in name and left[0] < letters
        if MASK not in shown or hidden or left[0] > letters + more or left[1] > marks + more:
            found.append((value, printed, shown))
    return found


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_P12_what_a_program_prints_of_a_value_is_masked(name: str) -> None:
    assert faults(name, encoders.ENCODERS[name], encoders.values(SAMPLE, seed=4), seed=9) == []


PASSWORDS = ["kQ9+zR/7pLmN+x2Vb8T/0wYcE5aHj3Gd==", "naïve-päss-🔑-word", 'it\'s "50%" <&> `$HOME` \\o/']


def dot_net(text: str) -> str:
    units = text.encode("utf-16-be")
    codes = [int.from_bytes(units[at : at + 2]) for at in range(0, len(units), 2)]
    return "".join(chr(one) if one < 128 and chr(one) not in "\"&'+<>\\`" else f"\\u{one:04X}" for one in codes)


@pytest.mark.parametrize(
    ("value", "printed"), [("e\\%41/n*$HOMEz", b"e\\\\%41/n\\*\\$HOMEz"), ('&\tm`g\teftu"', b'&\\tm`g\\teftu\\"')]
)
def test_P12_values_that_hold_what_looks_like_an_escape(value: str, printed: bytes) -> None:
    text = b"<< " + printed + b" >>"
    for at in range(len(text)):
        assert masked([value.encode()], text[:at], text[at:]) == b"<< *** >>"


CUT = b"qkvsoaowg7va"


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (b"hunter2hunter >\\", b"hunter2hunter\\u0020\\u003e\\u005c"),
        (b"% `" + CUT, b"%25+%60" + CUT),
        (b"%  &" + CUT, b"% &" + CUT),
        (
            b"hunter2hunter\"\n'&&",
            b"hunter2hunter\"\n'\\''&&",
        ),  # its own quotes look like those of a literal in two lines
    ],
)
def test_P12_what_stands_before_and_after_the_letters_of_a_value_is_waited_for(value: bytes, printed: bytes) -> None:
    text = b"<< " + printed + b" >>"
    for at in range(len(text)):
        assert masked([value], text[:at], text[at:]).replace(b"***\n***", b"***") == b"<< *** >>"


@pytest.mark.parametrize("offset", range(3))
def test_P12_the_signs_of_base64_in_addresses_are_waited_for(offset: int) -> None:
    value = b"?\xff>some bytes 4711"
    text = base64.urlsafe_b64encode(b"\0" * offset + value + b"\0\0")
    for at in range(len(text)):
        assert len(masked([value], text[:at], text[at:])) <= len(MASK) + 2 * offset + 6


@pytest.mark.parametrize(
    ("value", "before", "printed"),
    [
        ("fJJG$HO&MEy5", "C:\\", "fJJG$HO&amp;MEy5"),
        ("122а密4", "%", "122\\u0430\\u5bc64"),
        ("41ñ-word", "100%", "41\\xF1-word"),
        ("e<d$i%", "\\", "e&lt;d$i%"),
        ('41"!', "100%", '41\\"!'),
        ('41ñ"word', "100%", "41\\u00f1\\&quot;word"),
        ("e%orw\"\tgof''n", "C:\\", "e%orw\"\tgof'\\'''\\''n"),
        ("\\vs1\\%25cxuo'bv7", "", "\\vs1\\%25cxuo'\\''bv7"),
    ],
)
def test_P12_what_looks_like_an_escape_together_with_what_is_before_it(value: str, before: str, printed: str) -> None:
    text = f"<< {before}{printed} >>".encode()
    for at in range(len(text)):
        assert masked([value.encode()], text[:at], text[at:]) == f"<< {before}*** >>".encode()


@pytest.mark.parametrize("password", PASSWORDS)
def test_P12_json_of_net_gson_and_xml(password: str) -> None:
    gson = "".join(f"\\u{ord(one):04x}" if one in "<>&='" else one for one in json.dumps(password, ensure_ascii=False))
    xml = "".join(f"&#x{ord(one):X};" if not one.isalnum() else one for one in password)
    for text in (f'"{dot_net(password)}"', gson, f"<p>{xml}</p>", json.dumps(f'"{dot_net(password)}"')):
        shown = masked([password.encode()], b"pw: " + text.encode() + b" end\n")
        assert MASK in shown
        assert shown.startswith(b"pw: ")
        assert shown.endswith(b" end\n")
        assert len(skeleton(shown)) <= len("pwpendp"), shown


def test_P15_blanks_folded_or_trimmed() -> None:
    assert masked([b"  tr1m-me-please-42  "], b"<tr1m-me-please-42>\n") == b"<***>\n"
    assert masked([b"two  words\tand-tab"], b"two words and-tab\n") == b"***\n"
    assert masked([b"line one\nline two\n"], b"line one line two") == b"*** ***"
    assert masked([b"two words"], b"twowords two-words") == b"twowords two-words"


KEY = (
    "-----BEGIN PRIVATE KEY-----\n"
    "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n"
    "MzEfYyjiWA4R4/M2bS1GB4t7NXp98C3SC6dVMvDuictGeurT8jNbvJZHtCSuYEvu\n"
    "-----END PRIVATE KEY-----\n"
)
ACCOUNT = {
    "type": "service_account",
    "private_key_id": "0123456789abcdef0123456789abcdef01234567",
    "private_key": KEY,
    "client_email": "deployer@proj.iam.gserviceaccount.com",
    "auth_uri": "https://accounts.google.com/o/oauth2/auth",
    "enabled": True,
}


@pytest.mark.parametrize("indent", [None, 2])
def test_P16_strings_inside_a_structured_value(indent: int | None) -> None:
    value = json.dumps(ACCOUNT, indent=indent).encode()
    assert masked([value], KEY.encode()) == b"***\n***\n***\n***\n"
    hidden = {**ACCOUNT, "private_key_id": "***", "private_key": "***\n", "client_email": "***"}
    for way in (None, 2):
        assert masked([value], json.dumps(ACCOUNT, indent=way).encode()) == json.dumps(hidden, indent=way).encode()
    assert base64.b64encode(value)[40:60] not in masked([value], base64.b64encode(value))


def test_P16_common_words_and_other_peoples_documents_stay() -> None:
    value = json.dumps(ACCOUNT, indent=2).encode()
    other = b'{\n  "type": "service_account",\n  "auth_uri": "https://accounts.google.com/o/oauth2/auth"\n}\ntrue\n'
    other += b"-----BEGIN PRIVATE KEY-----\n"
    assert masked([value, KEY.encode()], other) == other


@pytest.mark.parametrize(
    ("value", "secret", "public"),
    [
        (b"postgresql://app:p%40ss-w0rd@db.internal/app", b"p@ss-w0rd", b"db.internal/app"),
        (b"DEBUG=true\nDB_PASSWORD='hunter2'\nLOG_LEVEL=info\n", b"hunter2", b"DEBUG=true LOG_LEVEL=info"),
        (b"apiVersion: v1\nkind: Config\n  token: abc.def.1\n", b"abc.def.1", b"apiVersion: v1\nkind: Config\n"),
        (b'{"auths":{"ghcr.io":{"auth":"' + base64.b64encode(b"me:tok3n-xyz") + b'"}}}', b"tok3n-xyz", b"ghcr.io"),
        (b"Server=tcp:db;User Id=sa;Password=P@ss;", b"P@ss", b"Server=tcp:db"),
    ],
)
def test_P16_passwords_inside_other_documents(value: bytes, secret: bytes, public: bytes) -> None:
    assert masked([value], b"<" + secret + b"> " + public) == b"<***> " + public


SECRET = b"Tr0ub4dor+3xQz"
DOCUMENTS = {
    "netrc": b"machine api.example.com login bob password %s\n",
    "pgpass": b"db.example.com:5432:shop:bob:%s\n",
    "login": b"bob:%s",
    "Maven": b"<servers>\n <server>\n  <username>bob</username>\n  <password>%s</password>\n </server>\n</servers>",
    "NuGet": b'<x><add key="Username" value="bob"/><add key="ClearTextPassword" value="%s"/></x>',
    "YAML flow": b"db: {password: %s, user: bob}",
    "YAML line": b"password: %s",
    "Kubernetes": b"env:\n- name: DB_USER\n  value: bob\n- name: DB_PASSWORD\n  value: %s\n",
    "line": b"export PASSWORD='%s'\n",
    "header": b"Authorization: Bearer %s",
    "libpq": b"host=db.example.com user=bob password=%s",
    "redis": b"requirepass %s\nmaxmemory 1gb\n",
    "curlrc": b'user = "bob:%s"\n',
    "JSON5": b"{password: '%s'}",
    "JSON lines": b'{"user":"bob","password":"%s"}\n{"user":"eve"}\n',
    "JSON string": b'"%s"',
    "JSON after a BOM": b'\xef\xbb\xbf{"user":"bob","password":"%s"}',
    "JSON of siblings": b'[{"name":"DB_PASSWORD","value":"%s"},{"name":"DB_USER","value":"bob"}]',
    "web hook": b"https://hooks.example.com/services/T0/%s9000",
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_P16_a_password_alone_out_of_a_document_of_any_kind(kind: str) -> None:
    secret = SECRET + b"9000" if kind == "web hook" else SECRET
    public = b" bob at api.example.com, value name password services\n"
    assert masked([DOCUMENTS[kind] % SECRET], b"<" + secret + b">" + public) == b"<***>" + public


def test_P16_what_only_looks_like_a_login_or_a_sentence_of_one_stays() -> None:
    values = [
        b"a password is required here\nthe token expires\n",
        b"db.example.com:54321",
        b"shop:1.25.3",
        b"ci:deploy-bot",
    ]
    values += [b"https://example.com/deployments/production"]
    text = b"required expires 54321 1.25.3 deploy-bot /deployments/production\n"
    assert masked(values, text) == text


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("a1$b2$c3", b"a1$$b2$$c3"),  # make, compose
        ("100%sure%7", b"100%%sure%%7"),  # printf, ini
        ("x'1\"y`2$z", b"x'1`\"y``2`$z"),  # PowerShell
        ("a1&b<c2|d", b"a1^&b^<c2^|d"),  # cmd
        ("päss-\N{KEY}-word1", "päss-\N{KEY}-word1".encode("utf-16-le")),
        ("päss-\N{KEY}-word1", "päss-\N{KEY}-word1".encode("utf-16-be")),
    ],
)
def test_P12_signs_that_are_doubled_or_escaped_and_wide_characters(value: str, printed: bytes) -> None:
    shown = masked([value.encode()], b"pw: " + printed + b" end\n")
    assert shown.replace(b"\0", b"") == b"pw: *** end\n"


def certificates() -> bytes:
    chosen = random.Random(5)  # noqa: S311  reproducible
    frame = (b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n")
    return b"".join(frame[0] + base64.encodebytes(chosen.randbytes(1100)) + frame[1] for _ in range(43))


def seconds(values: list[bytes], text: bytes) -> float:
    def look() -> None:
        masker = Masker(values)
        assert b"".join([*(masker.feed(text[at : at + 65536]) for at in range(0, len(text), 65536)), masker.finish()])

    return cost(look, 3)


LINE = b"2026-01-01T00:00:00Z INFO 'some' ordinary line of a build log, 100% of it, a\\b & c: nothing secret\n"


def test_P23_cost_grows_with_the_output_and_not_with_the_values() -> None:
    text = LINE * 5_000
    assert seconds([certificates()], text) < 15 * seconds([b"kQ9+zR/7pLmN+x2Vb8T"], text) + 0.1


HOSTILE = [b"\\", b"%41", b"\\\\\\u0041", b"'", b"&amp;amp;", b"aaaa", b"kQ9+zR/7pLmN+x2Vb8", b"a" * 62]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("part", HOSTILE)
def test_P23_hostile_output_takes_linear_time(part: bytes) -> None:
    values = [b"kQ9+zR/7pLmN+x2Vb8T", b"aaaa", b"a" * 63 + b"b"]
    once, thrice = (seconds(values, (part * size)[:size]) for size in (15_000, 45_000))
    assert thrice < 8 * once + 0.2


def test_ordinary_output_passes_unchanged() -> None:
    values = [b"kQ9+zR/7pLmN+x2Vb8T", b"hunter2-db", certificates(), json.dumps(ACCOUNT).encode(), b"app_user"]
    text = LINE * 2_000
    assert masked(values, *(text[at : at + 5000] for at in range(0, len(text), 5000))) == text


def test_a_runner_is_told_single_lines_and_no_common_ones() -> None:
    told = spoken([json.dumps(ACCOUNT, indent=2).encode(), certificates(), b"two  words <&>"])
    assert not [line for line in told if "\n" in line or line.strip() in {"{", "}", "true", "service_account"}]
    assert not [line for line in told if line.startswith("-----") and len(line) < 60]
    assert {KEY.splitlines()[1], ACCOUNT["client_email"], "two words <&>", "two  words &lt;&amp;&gt;"} <= set(told)
    assert len(told) <= 2000
