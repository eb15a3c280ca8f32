"""Reading a body: its cost grows with its length whatever it holds, and what it means is never a guess."""

import contextlib
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.problems import Refusal
from orchestrator.api.request_body import CONTAINERS_MAX, DEPTH_MAX, decode
from orchestrator.jobs.registry import Handler


class Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str


HOSTILE = {
    "an unclosed string of escaped quotes": lambda n: b'"' + b'\\"' * (n // 2),
    "an unclosed string of backslashes": lambda n: b'"' + b"\\" * n,
    "nothing but quotes": lambda n: b'"' * n,
    "quotes and backslashes": lambda n: b'"\\' * (n // 2),
    "opened and never closed": lambda n: b"[" * n,
    "opened, then closed": lambda n: b"[" * (n // 2) + b"]" * (n // 2),
    "as deep as may be, many times": lambda n: b"[" + b",".join([b"[" * 63 + b"]" * 63] * (n // 127)) + b"]",
    "empty lists": lambda n: b"[" + b",".join([b"[]"] * (n // 3)) + b"]",
    "objects": lambda n: b"[" + b",".join([b'{"a":1}'] * (n // 8)) + b"]",
    "keys": lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n // 12)) + b"}",
    "one key again and again": lambda n: b"{" + b",".join([b'"a":1'] * (n // 6)) + b"}",
    "exponents": lambda n: b"1e0" * (n // 3),
    "one long exponent": lambda n: b"1e" + b"0" * n,
    "one long number": lambda n: b"1" * n,
    "spaces": lambda n: b" " * n,
    "a name that looks like a message": lambda n: b'{"' + b"unknown field `" * (n // 15) + b'": 1}',
    "a name that looks like a path": lambda n: b'{"' + b" - at `$" * (n // 8) + b'": 1}',
    "escaped NULs": lambda n: b'{"name": "' + b"\\\\" * (n // 2) + b'\\u0000"}',
}


@pytest.mark.parametrize("kind", [Any, Named])
@pytest.mark.parametrize("made", HOSTILE)
def test_four_times_the_length_takes_four_times_as_long_and_a_megabyte_less_than_a_second(made, kind):
    def took_s(text):
        best = 9.0
        for _ in range(3):
            began = time.thread_time()
            with contextlib.suppress(Refusal):
                decode(text, kind)
            best = min(best, time.thread_time() - began)
        return best

    short_s, long_s = took_s(HOSTILE[made](1 << 18)), took_s(HOSTILE[made](1 << 20))
    assert long_s < 1.5, f"{long_s:.2f} s for a megabyte"
    # Quadratic is 16. A short time is all noise.
    assert long_s < 0.3 or long_s / short_s < 11, (short_s, long_s)


def test_what_is_told_of_a_name_is_short_however_long_the_name_is():
    for name in ("x" * 500_000, "unknown field `" * 30_000, " - at `$" * 60_000):
        with pytest.raises(Refusal) as refused:
            decode(json.dumps({name: 1}).encode(), Named)
        assert len(str(refused.value.detail)) + len(str(refused.value.members)) < 3000


def test_containers_are_counted_since_each_costs_far_more_than_its_two_bytes():
    decode(b"[" + b",".join([b"[]"] * (CONTAINERS_MAX - 1)) + b"]", Any)
    decode(json.dumps(["[]" * CONTAINERS_MAX]).encode(), Any)
    with pytest.raises(Refusal) as refused:
        decode(b"[" + b",".join([b"{}"] * CONTAINERS_MAX) + b"]", Any)
    assert refused.value.status == 413


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "b": 2, "\\u0061": 3}',
        b'{"x": [{"y": {"": 1, "": 2}}]}',
        b'[{"k": 1, "l": 1, "k": 1}]',
    ],
)
def test_a_key_that_is_given_twice_is_refused(text):
    with pytest.raises(Refusal, match="given twice") as refused:
        decode(text, Any)
    assert refused.value.status == 400


def test_numbers_count_as_what_they_are_when_written_out():
    for fine in (b"[1e308]", b'["1e999999999"]', b"[1.5e-3, 2E+10]", b'{"true": true, "e9": false}'):
        decode(fine, Any)
    for text in (
        b"[" + b",".join([b"1e308"] * 4000) + b"]",
        b"[" + b",".join([b"1E-307"] * 4000) + b"]",
        b"[1e999999999]",
        b"[1e1048576]",
    ):
        with pytest.raises(Refusal) as refused:
            decode(text, Any)
        assert refused.value.status == 413, text[:30]


class Counted(msgspec.Struct, forbid_unknown_fields=True):
    count: int
    share: float = 0.0
    payload: msgspec.Raw = msgspec.Raw(b"{}")


def test_a_whole_number_is_an_integer_however_it_is_written_and_nothing_else_becomes_one():
    for text in (b'{"count": 2}', b'{"count": 2.0}', b'{"count": 2e0, "share": 0.5}', b'{"count": 0.2e1, "share": 1}'):
        assert decode(text, Counted).count == 2
    assert bytes(decode(b'{"count": 2, "payload": {"x": 1.0}}', Counted).payload) == b'{"x": 1.0}'
    for text in (b'{"count": 2.5}', b'{"count": "2"}', b'{"count": 2.0, "share": "1"}', b'{"count": 1e300}'):
        with pytest.raises(Refusal) as refused:
            decode(text, Counted)
        assert refused.value.status == 422


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e30, 1e30) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


@given(values)
def test_what_json_says_is_what_is_read(value):
    assert decode(json.dumps(value).encode(), Any) == value


@given(st.integers(1, 2 * DEPTH_MAX), st.text(alphabet='[]{}"\\', max_size=200))
def test_depth_is_told_exactly_whatever_the_strings_hold(depth, noise):
    text = b"[" * (depth - 1) + json.dumps([noise]).encode() + b"]" * (depth - 1)
    if depth <= DEPTH_MAX:
        decode(text, Any)
    else:
        with pytest.raises(Refusal, match="deep"):
            decode(text, Any)


def test_a_payload_is_encoded_in_time_with_its_length():
    def made(name="x"):
        return Handler(name, "", "q", Any, 1, None, None, None, "UTC", None, None, msgspec.json.Decoder(Any), "", "")

    for text in (b'"' + b"\\\\" * (1 << 19) + b'"', b'"' + b"\\\\u0000" * (1 << 17) + b'"'):
        began = time.perf_counter()
        made().encode(msgspec.Raw(text))
        assert time.perf_counter() - began < 0.5
