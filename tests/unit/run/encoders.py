"""Real programs that print values in their own ways, and random values to print."""

from __future__ import annotations

import html
import json
import random
import shutil
import string
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

from tests.servers import readers

Encoder = Callable[[list[str]], list[bytes]]

END = "\x01"


def _program(*command: str) -> Encoder:
    """A program that reads values and writes what it makes of them, each ended by a byte that no value has."""

    def encode(values: list[str]) -> list[bytes]:
        path = shutil.which(command[0])
        assert path, f"{command[0]} is missing"
        sent = "".join(value + END for value in values).encode()
        done = subprocess.run([path, *command[1:]], input=sent, capture_output=True, check=True, timeout=600)
        return done.stdout.split(END.encode())[:-1]

    return encode


def _python(encode: Callable[[str], str]) -> Encoder:
    return lambda values: [encode(value).encode() for value in values]


def _node(expression: str) -> Encoder:
    script = (
        'const code = c => "\\\\u" + c.charCodeAt(0).toString(16).padStart(4, "0");'
        "const html = s => s.replace(/[<>&\\u2028\\u2029]/g, code);"
        'const all = s => s.split("").map(code).join("");'
        'const { inspect } = require("util");'
        'const values = require("fs").readFileSync(0, "utf8").split("\\x01").slice(0, -1);'
        f'process.stdout.write(values.map(v => ({expression}) + "\\x01").join(""));'
    )
    return _program(readers.NODE, "-e", script)


def _bash(line: str) -> Encoder:
    return _program("bash", "-c", f"while IFS= read -r -d $'\\x01' v; do {line}; done")


def _jq(filter_: str) -> Encoder:
    return _program("jq", "-Rsj", f'split("\\u0001")[:-1] | map(({filter_}) + "\\u0001") | add')


_PERL = (
    "use utf8; use open qw(:std :utf8); use Data::Dumper; $Data::Dumper::Useqq = 1; $Data::Dumper::Terse = 1;"
    '$Data::Dumper::Indent = 0; $/ = "\\x01"; while (<STDIN>) { chomp; print Dumper($_), "\\x01" }'
)

ENCODERS: dict[str, Encoder] = {
    "python json": _python(json.dumps),
    "python json in json": _python(lambda value: json.dumps(json.dumps(value, ensure_ascii=False))),
    "python repr": _python(repr),
    "python html": _python(html.escape),
    "python url": _python(lambda value: quote(value, safe="")),
    "python form": _python(quote_plus),
    "node json": _node("html(JSON.stringify(v))"),
    "node all escaped": _node("all(v)"),
    "node inspect": _node("inspect(v).replace(/' \\+\\n  '/g, \"\")"),
    "node escape": _node("escape(v)"),
    "node base64": _node('Buffer.from(v).toString("base64url")'),
    "bash %q": _bash("printf '%q\\x01' \"$v\""),
    "bash @Q": _bash("printf '%s\\x01' \"${v@Q}\""),
    "bash declare": _bash('d=$(declare -p v); printf "%s\\x01" "${d#*=}"'),
    "bash echo": _bash('set -f; printf "%s\\x01" "$(echo $v)"'),
    "jq @sh": _jq("@sh"),
    "jq @html": _jq("@html"),
    "jq @base64": _jq("@base64"),
    "jq json in json": _jq("tojson | tojson"),
    "perl dumper": _program("perl", "-e", _PERL),
}

JAVA = ("java xml", "java url", "java properties")
_JAVA = """
import java.io.*; import java.net.*; import java.nio.charset.StandardCharsets; import java.util.*;
import javax.xml.stream.*;
class Encode {
  public static void main(String[] a) throws Exception {
    String in = new String(System.in.readAllBytes(), StandardCharsets.UTF_8);
    PrintStream out = new PrintStream(System.out, false, "UTF-8");
    String[] values = in.split("\\u0001", -1);
    for (int i = 0; i < values.length - 1; i++) {
      StringWriter to = new StringWriter();
      if (a[0].equals("xml")) {
        XMLStreamWriter w = XMLOutputFactory.newInstance().createXMLStreamWriter(to);
        w.writeCharacters(values[i]); w.flush();
      } else if (a[0].equals("url")) { to.write(URLEncoder.encode(values[i], StandardCharsets.UTF_8)); }
      else {
        Properties p = new Properties(); p.setProperty("k", values[i]); p.store(to, null);
        String all = to.toString();
        to = new StringWriter();
        to.write(all.substring(all.indexOf("\\nk=") + 3, all.length() - 1));
      }
      out.print(to + "\\u0001");
    }
    out.flush();
  }
}
"""


def java(folder: Path) -> dict[str, Encoder]:
    """What comes with Java; its compiler takes too long for every run."""
    source = folder / "Encode.java"
    source.write_text(_JAVA, encoding="ascii")
    return {name: _program("java", str(source), name.split()[1]) for name in JAVA}


_ALPHABETS = (
    string.ascii_letters + string.digits,
    string.ascii_letters + string.digits + "+/=-_.",
    string.ascii_letters + string.digits + string.punctuation,
    string.ascii_lowercase + " '\"\\$`&<>%+\t",
    "äöüßéñ¿" + string.ascii_letters + string.digits,
    "пароль密码🔑🗝" + string.digits + "-",
    string.punctuation,
)
_LITERALS = ("%41", "&amp;", "\\n", "\\u0041", "%25", "''", "\\\\", "&#39;", "$HOME", "  ", "\n", "\\x41")


def values(count: int, seed: int) -> list[str]:
    """Random values of every sort: tokens, pass phrases, other scripts, several lines, what looks like an escape."""
    chosen = random.Random(seed)  # noqa: S311  reproducible
    return [_value(chosen) for _ in range(count)]


def _value(chosen: random.Random) -> str:
    alphabet = chosen.choice(_ALPHABETS)
    text = "".join(chosen.choices(alphabet, k=chosen.choice((6, 12, 20, 40, 100))))
    for _ in range(chosen.choice((0, 0, 1, 2))):
        at = chosen.randrange(len(text))
        text = text[:at] + chosen.choice(_LITERALS) + text[at:]
    return text


AROUND = (
    *[("", "")] * 12,
    *(("user:", "@host"), ('{"password":"', '"}'), ("https://u:", "@h/x?y=1"), ("a=", "&b=2"), ("line\n", "\nline")),
    *(
        ("x", "y"),
        ("7", "7"),
        ("-p", "' "),
        ("C:\\", "\\zone"),
        ("\\", "\\"),
        ("%", "%"),
        ("&", ";"),
        ("'", "'"),
        ("$", "$"),
    ),
)
"""What stands before a value and after it, some of it the beginning or the end of an escape."""


def cut(text: bytes, chosen: random.Random) -> list[bytes]:
    """``text`` in pieces, as writes and reads may cut it."""
    cuts = sorted(chosen.choices(range(len(text) + 1), k=chosen.choice((0, 1, 3, 8))))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
