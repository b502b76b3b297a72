"""Mutated inputs: a corpus entry and a list of changes, which Hypothesis makes and shrinks."""

import re

from hypothesis import strategies as st

MAX_CHANGES = 8
MAX_BYTES = 200_000
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TEXT_NUMBERS = (b"-1", b"0", b"65536", b"4294967296", b"1e999", b"9" * 400, b"NaN", b"")
VALUES = (
    b"null", b"true", b"-1", b"0", b"1e308", b"1e999", b"NaN", b"2147483648", b"0.5", b"[]", b"{}",
    b'""', b'"x"', b'"\\ud800"', b'"\\u0000"', b'"' + b"x" * 300 + b'"', b'{"x": {"x": []}}',
)  # fmt: skip
"""Of JSON: what stands in the place of a value leaves the rest valid."""

TOKENS = (
    b"\x00", b"\r\n", b"\n\n", b" ", b":", b"=", b"\xff\xfe", b"\xed\xa0\x80", b"\xe2\x98\x83",
    b"a=", b"m=", b"a=mid:", b"a=ice-ufrag:x", b"a=setup:active", b"a=candidate:", b"a=rtpmap:96 ",
    b"a=fmtp:96 ", b"a=group:BUNDLE 0 1 2", b"a=ssrc:", b"a=extmap:15 ", b"a=rtcp-fb:* nack",
    b"::1", b"x.local", b"[" * 600, b"{" * 600, b'"', b"null", b"true", b"{}", b"[]", b"\\ud800",
)  # fmt: skip


def changes():
    """Return a strategy for lists of changes: `(kind, place, value)`."""
    place = st.integers(0, 2**16 - 1)
    value = st.integers(0, 2**32 - 1)
    one = st.tuples(st.integers(0, len(_KINDS) - 1), place, value)
    return st.lists(one, max_size=MAX_CHANGES)


def inputs(entries):
    """Return a strategy for mutated inputs.

    Args:
        entries: the corpus, a list of bytes.
    """
    return st.builds(
        lambda entry, made: mutate(entry, made, entries), st.sampled_from(entries), changes()
    )


def random_input(rng, entries):
    """Return a mutated input of a `random.Random`: a hundred times as fast as Hypothesis.

    Half of the JSON stays valid, so that what comes after its parser is attacked as well.
    """
    entry = rng.choice(entries)
    stays_valid = b'": ' in entry and rng.random() < 0.5
    kinds = (_KINDS.index(_replace_value),) if stays_valid else range(len(_KINDS))
    made = [
        (rng.choice(kinds), rng.getrandbits(16), rng.getrandbits(32))
        for _ in range(rng.randrange(MAX_CHANGES + 1))
    ]
    return mutate(entry, made, entries)


def smaller(data):
    """Yield parts of an input, the smallest first."""
    size = len(data)
    while size > 1:
        size = (size + 1) // 2
        for start in range(0, len(data), size):
            yield data[:start] + data[start + size :]


def mutate(entry, made, entries):
    """Return an entry with changes, at most `MAX_BYTES` long."""
    for kind, place, value in made:
        at = place * (len(entry) + 1) >> 16
        entry = _KINDS[kind](entry, at, value, entries)[:MAX_BYTES]
    return entry


def _flip(data, at, value, _):
    changed = bytearray(data)
    if at < len(data):
        changed[at] ^= 1 << value % 8
    return bytes(changed)


def _set_byte(data, at, value, _):
    return data[:at] + bytes([value & 255]) + data[at + 1 :]


def _set_short(data, at, value, _):
    number = NUMBERS[value % len(NUMBERS)] & 0xFFFF
    return data[:at] + number.to_bytes(2, "big") + data[at + 2 :]


def _set_long(data, at, value, _):
    number = NUMBERS[value % len(NUMBERS)]
    return data[:at] + number.to_bytes(4, "big") + data[at + 4 :]


def _insert(data, at, value, _):
    return data[:at] + value.to_bytes(4, "big")[: 1 + value % 4] + data[at:]


def _delete(data, at, value, _):
    return data[:at] + data[at + 1 + value % 64 :]


def _truncate(data, at, value, _):
    return data[:at]


def _repeat(data, at, value, _):
    part = data[at : at + 1 + value % 64]
    return data[:at] + part * (1 + (value >> 8) % 200) + data[at:]


def _splice(data, at, value, entries):
    other = entries[value % len(entries)]
    return data[:at] + other[(value >> 8) % (len(other) + 1) :]


def _token(data, at, value, _):
    return data[:at] + TOKENS[value % len(TOKENS)] + data[at:]


def _drop_line(data, at, value, _):
    lines = data.splitlines(keepends=True)
    if lines:
        del lines[value % len(lines)]
    return b"".join(lines)


def _move_line(data, at, value, _):
    lines = data.splitlines(keepends=True)
    if lines:
        lines.insert(value % len(lines), lines[(value >> 16) % len(lines)])
    return b"".join(lines)


def _replace_number(data, at, value, _):
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    one = found[(value >> 8) % len(found)]
    return data[: one.start()] + TEXT_NUMBERS[value % len(TEXT_NUMBERS)] + data[one.end() :]


def _replace_value(data, at, value, _):
    found = list(re.finditer(rb'(?<=: )("[^"]*"|[-+.\w]+|\[\]|\{\})', data))
    if not found:
        return data
    one = found[(value >> 8) % len(found)]
    return data[: one.start()] + VALUES[value % len(VALUES)] + data[one.end() :]


_KINDS = (
    _flip, _set_byte, _set_short, _set_long, _insert, _delete, _truncate, _repeat, _splice, _token,
    _drop_line, _move_line, _replace_number, _replace_value,
)  # fmt: skip
