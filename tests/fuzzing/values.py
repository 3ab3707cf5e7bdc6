"""Hostile values, and the ways in which whole files are made hostile."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

TEXTS = (
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows",
    "C:\\Windows\\system32",
    "\\\\server\\share",
    "\0",
    "a\0b",
    "~",
    "~nobody-of-that-name/x",
    "$(touch /tmp/pwned)",
    "`id`",
    "; rm -rf x",
    "%s%n",
    "{0.__class__}",
    "{{7*7}}",
    "[red]x[/]",
    "[/]",
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "line\nline",
    "\x1b[2J\x1b[31m",
    "\u202e\u2066",
    "\ud800",
    "ﬀ𝔘𝔫𝔦😀",
    "a" * 300,
    "b" * 5000,
    "a/" * 400,
    "nan",
    "inf",
    "-1",
    "0",
    "1e309",
    "os.system",
    "__import__('os').system('id')",
    "user/..",
    "../user/name",
    "user/name@../../x",
    "user//name",
    "user/name/more",
    "/dev/zero",
    "/dev/stdin",
    "/dev/full",
    "/proc/self/mem",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    255,
    2**16,
    2**16 + 1,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**30,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
)
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=40))
numbers = st.sampled_from(NUMBERS)
plain = st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from(([], {}, [[]], [None], {"class": "VAE"})))


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


values = st.one_of(
    plain,
    st.lists(plain, max_size=4),
    st.dictionaries(texts, plain, max_size=3),
    st.sampled_from((_deep(50), _deep(900), {"a": _deep(300)}, [2**40, 2**40], [0] * 1000, list(range(5)))),
).map(copy.deepcopy)


def _places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand within a JSON value; the first thousand."""
    found = [prefix] if prefix else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        found += _places(part, (*prefix, key))
    return found[:1000]


@st.composite
def changed(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """A JSON value with a few parts exchanged, removed, added, or put into one another."""
    result = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        if not (places := _places(result)):
            return draw(values)
        *outer, last = draw(st.sampled_from(places))
        parent = result
        for key in outer:
            parent = parent[key]
        act = draw(st.sampled_from(("exchange", "exchange", "exchange", "remove", "add", "wrap", "whole")))
        if act == "exchange":
            parent[last] = draw(values)
        elif act == "remove":
            del parent[last]
        elif act == "add":
            extra = draw(values)
            parent.update({draw(texts): extra}) if isinstance(parent, dict) else parent.append(extra)
        elif act == "wrap":
            parent[last] = draw(st.sampled_from(([parent[last]], {str(last): parent[last]})))
        else:
            result = draw(values)
    return result


def dumps(value: Any) -> bytes:
    """JSON as Python reads it: NaN, Infinity and lone surrogates too."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


_BROKEN_JSON = (
    b"",
    b"null",
    b"{",
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5_000,
    b'{"class": ' + b"9" * 4_000 + b"}",
    b"-" + b"9" * 1_000_000,
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b'"\\ud800"',
    b'{"class": NaN}',
    b'{"class": 1e999999}',
    b'{"a": 1, "a": 2}',
    b"\0" * 1000,
    b"\x80\x04\x95cos\nsystem\n(S'id'\ntR.",
)


@st.composite
def json_files(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON file like that of ``value``, which something has changed."""
    way = draw(st.sampled_from(("value", "value", "value", "value", "bytes", "broken")))
    if way == "broken":
        return draw(st.sampled_from(_BROKEN_JSON))
    if way == "bytes":
        return draw(mutated(dumps(value)))
    return dumps(draw(changed(value)))


_WORDS = tuple(
    number.to_bytes(size, order)
    for size in (2, 4, 8)
    for order in ("little", "big")
    for number in (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 2))
)


@st.composite
def mutated(draw: st.DrawFn, content: bytes, most: int = 4) -> bytes:
    """A file with a few bytes changed, parts cut out, doubled or exchanged; mostly near its start or its end."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        size = len(result)
        reach = draw(st.sampled_from((16, 128, 1024, size)))
        offset = draw(st.integers(0, max(0, min(reach, size) - 1)))
        place = offset if draw(st.booleans()) else max(0, size - 1 - offset)
        length = draw(st.sampled_from((1, 2, 4, 16, 256, 4096)))
        act = draw(st.sampled_from(("flip", "byte", "word", "word", "cut", "drop", "double", "insert", "zero")))
        if act == "flip" and size:
            result[place] ^= 1 << draw(st.integers(0, 7))
        elif act == "byte" and size:
            result[place] = draw(st.integers(0, 255))
        elif act == "word":
            word = draw(st.sampled_from(_WORDS))
            result[place : place + len(word)] = word
        elif act == "cut":
            del result[place:]
        elif act == "drop":
            del result[place : place + length]
        elif act == "double":
            result[place:place] = result[place : place + length]
        elif act == "insert":
            result[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif act == "zero":
            result[place : place + length] = bytes(length)
    return bytes(result)
