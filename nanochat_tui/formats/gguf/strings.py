"""Many strings of a GGUF file at once: each is a u64 length in front of its UTF-8 bytes.

Where the next string begins, only the length of this one tells; but seven zero bytes of a length below 256 hardly occur
elsewhere. So all places that look like such a length are found together, and believed as far as each leads to the next.
"""

from __future__ import annotations

import numpy as np

_PREFIX = 8


def short_strings(data: bytes, most: int) -> tuple[list[str], int]:
    """Return strings that stand one after another from the beginning of `data`, at most `most`, and their bytes.

    Ends early at whatever is longer than 255 bytes, cut off by the end of `data` or not plain to see: that may be
    the first. Raises UnicodeDecodeError if one is not UTF-8.
    """
    if len(data) <= _PREFIX or most < 1:
        return [], 0
    bytes_ = np.frombuffer(data, np.uint8)
    zero = bytes_ == 0
    reach = len(zero) - _PREFIX + 1
    looks = zero[1 : reach + 1].copy()
    for place in range(2, _PREFIX):
        looks &= zero[place : place + reach]
    places = np.flatnonzero(looks)
    if not len(places) or places[0] != 0:
        return [], 0
    following = places + bytes_[places] + _PREFIX
    breaks = np.flatnonzero(following[:-1] != places[1:])
    count = min(most, int(breaks[0]) if len(breaks) else len(places) - 1)
    if not count:
        return [], 0
    places, end = places[:count], int(places[count])
    # of a length one byte stays, zero, to part the strings; a zero inside a string would part it too
    if np.count_nonzero(zero[:end]) != (_PREFIX - 1) * count + np.count_nonzero(zero[places]):
        return [], 0
    kept = ~zero[:end]
    kept[places] = False
    kept[places + _PREFIX - 1] = True
    return bytes_[:end][kept].tobytes().decode().split("\0")[1:], end
