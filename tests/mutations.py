"""Files made wrong on purpose: bits flipped, ends cut, stretches doubled, and what formats must not swallow put in."""

import io
import random
import zipfile
from collections.abc import Sequence

POISON = [b"1e999", b"NaN", b"Infinity", b"200000000", b"99999999999999999999", b"-1", b"0", b'"\\ud800"', b"\\u0000"]
POISON += [b"null", b"true", b"{}", b"[]", b'{"a":' * 60, b"[" * 2000, b"(" * 60, b"a: &a [*a, *a]\n", b"\xff\xfe"]
POISON += [b"!!python/object/apply:os.getcwd []", b"2001-13-45", b"? \n", b"\0", b"\xed\xa0\x80", b'"', b"'", b"\r"]
POISON += [b",,,,,,,,", b"\t", b"../../../x", b"/etc/passwd", b"\\", b"%s", b"\x93NUMPY", b"PK\x03\x04", b"x" * 70000]
"""What readers stumble over: numbers out of range, lone surrogates, depth, tags, paths, marks of other formats."""
DIGITS = b"0123456789.eE"


def flip(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Change some bits."""
    for _ in range(rng.choice([1, 1, 2, 8, 64]) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Leave the end out."""
    del data[rng.randrange(len(data) + 1) :]


def leave_out(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Take a stretch out of the middle."""
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice([1, 4, 16, 256])]


def double(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Write a stretch twice."""
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.choice([1, 8, 64, 1024])]


def poison(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Put a poison in, or write it over what is there."""
    word, start = rng.choice(POISON), rng.randrange(len(data) + 1)
    data[start : start + rng.choice([0, 0, 1, len(word)])] = word


def replace_number(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Put a poison in the place of a run of digits."""
    places = [i for i, byte in enumerate(data) if byte in DIGITS[:10] and (i == 0 or data[i - 1] not in DIGITS)]
    if places:
        start = end = rng.choice(places)
        while end < len(data) and data[end] in DIGITS:
            end += 1
        data[start:end] = rng.choice(POISON)


def cross(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Go on with another file's end."""
    del data[rng.randrange(len(data) + 1) :]
    data += other[rng.randrange(len(other) + 1) :]


MUTATIONS = [flip, cut, leave_out, double, poison, poison, replace_number, replace_number, cross]


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """Return the mutation of this number: a pure function of it and of the whole files it starts from.

    Of an archive every other one has a part that is changed before its checksum is made.
    """
    rng = random.Random(number)
    data = bytearray(rng.choice(seeds))
    if number % 2 and zipfile.is_zipfile(io.BytesIO(data)):
        return _with_changed_part(bytes(data), rng)
    _change(data, rng, rng.choice(seeds))
    return bytes(data)


def _change(data: bytearray, rng: random.Random, other: bytes) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(MUTATIONS)(data, rng, other)


def _with_changed_part(archive: bytes, rng: random.Random) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(content, "w") as new:
        changed = rng.choice(old.namelist())
        for name in old.namelist():
            part = bytearray(old.read(name))
            if name == changed:
                _change(part, rng, archive)
            new.writestr(name, bytes(part))
    return content.getvalue()
