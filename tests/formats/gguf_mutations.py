"""Mutates a sound GGUF file where it hurts, and reads every mutant as a user would, under limits.

Run as a program: `python gguf_mutations.py FOLDER COUNT SEED` prints one JSON object. It runs in a process of its own
so that the kernel enforces the limits: 200 MB of address space beyond what the loaded libraries take, and seconds of
processor time per mutant. Anything but success or FormatError ends it with a traceback that names the mutant.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf_samples as samples

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import read_gguf, write_gguf
from nanochat_tui.formats.tensor_types import ternary_codes

EXTRA_MEMORY = 200 << 20
SECONDS_EACH = 10.0


class Field(NamedTuple):
    """A number in the header: what it says, where, and in how many bytes."""

    kind: str
    offset: int
    width: int


_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def fields(data: bytes) -> tuple[list[Field], int]:
    """Walk a sound file, independently of the reader: every count, length, type, dim and offset; the header's end."""
    found = [Field("magic", 0, 4), Field("version", 4, 4), Field("tensor count", 8, 8), Field("key count", 16, 8)]
    at = 24

    def number(kind: str, width: int) -> int:
        nonlocal at
        found.append(Field(kind, at, width))
        at += width
        return int.from_bytes(data[at - width : at], "little")

    def text(kind: str) -> None:
        nonlocal at
        length = number(f"{kind} length", 8)
        if length:
            found.append(Field(f"{kind} text", at, min(4, length)))
        at += length

    for _ in range(int.from_bytes(data[16:24], "little")):
        text("key")
        kind = number("value type", 4)
        if kind == 9:
            element = number("array type", 4)
            count = number("array count", 8)
            if element == 8:
                for index in range(count):
                    start = len(found)
                    text("array string")
                    if index > 3:  # a few stand for all, so that the choice is not drowned in them
                        del found[start:]
            else:
                at += count * _WIDTHS[element]
        elif kind == 8:
            text("value")
        else:
            number("value", _WIDTHS[kind])
    for _ in range(int.from_bytes(data[8:16], "little")):
        text("name")
        for _ in range(number("dims", 4)):
            number("dim", 8)
        number("type", 4)
        number("offset", 8)
    return found, at


def interesting(rng: random.Random, old: int, width: int, size: int) -> int:
    """Choose a number that is likely to be mishandled."""
    limit = 1 << (8 * width)
    choice = rng.choice(
        [
            lambda: rng.choice(
                [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 30, 34, 35, 36, 39, 40, 41, 42, 43, 100, 142, 143, 253]
            ),
            lambda: limit - rng.choice([1, 2, 8, 24, 32, 33]),
            lambda: (1 << rng.randrange(8 * width)) + rng.choice([-1, 0, 1]),
            lambda: size + rng.randrange(-64, 65),
            lambda: old + rng.choice([-64, -32, -16, -2, -1, 1, 2, 16, 32, 64]),
            lambda: old * rng.choice([2, 3, 16, 256, 1 << 20]),
            lambda: old // rng.choice([2, 4, 32]),
            lambda: old ^ (1 << rng.randrange(8 * width)),
            lambda: rng.randrange(limit),
            lambda: rng.randrange(size),
        ]
    )
    return choice() % limit


def mutate(rng: random.Random, data: bytes, places: list[Field], header_end: int) -> tuple[bytes, str]:
    """Return a mutant of the file and what was done to it."""
    out = bytearray(data)
    done = []

    def rewrite() -> None:
        place = rng.choice(by_kind[rng.choice(kinds)])
        old = int.from_bytes(out[place.offset : place.offset + place.width], "little")
        new = interesting(rng, old, place.width, len(data))
        out[place.offset : place.offset + place.width] = new.to_bytes(place.width, "little")
        done.append(f"{place.kind} at {place.offset}: {old} -> {new}")

    def swap() -> None:
        kind = rng.choice(kinds)
        one, two = rng.choice(by_kind[kind]), rng.choice(by_kind[kind])
        if one.width == two.width:
            a, b = slice(one.offset, one.offset + one.width), slice(two.offset, two.offset + two.width)
            out[a], out[b] = out[b], out[a]
        done.append(f"swap {kind} at {one.offset} and {two.offset}")

    def cut() -> None:
        end = rng.choice([rng.randrange(header_end), rng.randrange(len(data)), rng.choice(places).offset])
        del out[end:]
        done.append(f"cut at {end}")

    def remove() -> None:
        start = rng.choice(places).offset
        length = rng.choice([1, 4, 8, 12, 32, 100])
        del out[start : start + length]
        done.append(f"remove {length} at {start}")

    def insert() -> None:
        start = rng.choice(places).offset
        extra = rng.choice([bytes(8), b"\xff" * 8, rng.randbytes(rng.randrange(1, 40)), bytes(out[start : start + 40])])
        out[start:start] = extra
        done.append(f"insert {len(extra)} at {start}")

    def scribble() -> None:
        start = rng.randrange(header_end)
        out[start] = rng.randrange(256)
        done.append(f"scribble at {start}")

    by_kind: dict[str, list[Field]] = {}
    for place in places:
        by_kind.setdefault(place.kind, []).append(place)
    kinds = sorted(by_kind)
    actions: list[Callable[[], None]] = [
        rewrite,
        rewrite,
        rewrite,
        rewrite,
        rewrite,
        swap,
        cut,
        remove,
        insert,
        scribble,
    ]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        places_left = max((p.offset + p.width for p in places), default=0) <= len(out)
        (rng.choice(actions) if places_left else scribble_end(out, rng, done))()
    return bytes(out), "; ".join(done)


def scribble_end(out: bytearray, rng: random.Random, done: list[str]) -> Callable[[], None]:
    """After a cut the known places may be gone: change what is left."""

    def change() -> None:
        if out:
            out[rng.randrange(len(out))] = rng.randrange(256)
        done.append("scribble")

    return change


def read_all(path: Path) -> None:
    """Do what a careful user of the file would: look at everything and decode every tensor."""
    with read_gguf(path) as file:
        for value in file.metadata.values():
            assert value.type_name
        for name, info in file.tensors.items():
            assert 0 < info.nbytes <= file.size - info.offset
            try:
                assert file.array(name).shape == info.shape
                if info.type.is_ternary:
                    ternary_codes(info.type, file.blocks(name))
            except FormatError:
                assert not info.type.is_decodable  # the only reason left


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(folder: Path, count: int, seed: int) -> dict[str, object]:
    """Read `count` mutants and return what became of them."""
    path = folder / "mutant.gguf"
    write_gguf(path, samples.metadata(40), samples.tensors())
    sound = path.read_bytes()
    places, header_end = fields(sound)
    assert struct.unpack_from("<Q", sound, 8)[0] == len(samples.tensors())
    read_all(path)  # imports what is imported lazily, before the limit is set
    ceiling = _address_space() + EXTRA_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))

    def too_long(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGPROF, too_long)
    rng = random.Random(seed)
    reasons: Counter[str] = Counter()
    loaded = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(count):
        mutant, what = mutate(rng, sound, places, header_end)
        path.write_bytes(mutant)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
        try:
            read_all(path)
            loaded += 1
        except FormatError as error:
            sentence = str(error)
            assert "\n" not in sentence, sentence
            assert len(sentence) < 1000, sentence
            reasons["".join(c for c in sentence.partition(": ")[2] if not c.isdigit())[:60]] += 1
        except BaseException:
            print(f"mutant {index} of seed {seed}: {what}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {
        "mutants": count,
        "loaded": loaded,
        "refused": sum(reasons.values()),
        "reasons": len(reasons),
        "grown_bytes": grown,
        "common": reasons.most_common(40),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
