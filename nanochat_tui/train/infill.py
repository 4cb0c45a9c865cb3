"""Fill in the middle in training: texts of a row shown as prefix, suffix and middle (Bavarian et al. 2022).

The transformation is made after documents were cut into rows ("context level" there), because most files are longer
than a row: in a whole file that is rearranged first and cut later, marks and what they join land in different rows. A
text is a document, or the part of one that is in the row; it keeps its place and its length, so the rows of an epoch
stay what they are and a run may begin with it at any step. What the marks (and an end of the text, where none follows)
take away is left out at the end of the suffix, which a reply's context cuts there as well.

Texts are cut between characters, drawn evenly, and each part is encoded by itself, as it will be in use. Leading tabs
are single characters by then, so no tab is cut into spaces.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nanochat_tui.errors import UserError
from nanochat_tui.model.tokenizer.codec import TextCodec
from nanochat_tui.model.tokenizer.infill import InfillMarks, choose_marks

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InfillSettings:
    """`rate` of the texts are rearranged, `suffix_first` of these in the order SPM; `end` is the end-of-text id."""

    rate: float
    suffix_first: float
    end: int
    seed: int


class Infill:
    """Rearranges texts of rows; a function of its settings and of the row's place alone."""

    def __init__(self, tokenizer: Tokenizer, marks: InfillMarks, settings: InfillSettings) -> None:
        self.marks, self.settings = marks, settings
        self._tokenizer = tokenizer
        codec = TextCodec(tokenizer, None, None, add_bos=False)
        self._bytes = [codec.token_bytes(i) for i in range(tokenizer.get_vocab_size(with_added_tokens=True))]

    def row(self, texts: Sequence[Ids], place: tuple[int, ...]) -> Ids:
        """Return a row made of `texts`, each of one document (int64 ids), of the same length; `place` names the row."""
        rng = np.random.default_rng([self.settings.seed, *place])
        found = []
        for text, following in itertools.zip_longest(texts, texts[1:]):
            ends = following is not None and following[0] == self.settings.end
            changed = self.rearrange(text, rng, ends=ends) if rng.random() < self.settings.rate else None
            found.append(text if changed is None else changed)
        return np.concatenate(found)

    def rearrange(self, text: Ids, rng: np.random.Generator, *, ends: bool) -> Ids | None:
        """Return a text as prefix, suffix and middle, as long as it was; `ends`: an end-of-text token follows it.

        None for a text too short for it or one that begins or ends within a character.
        """
        end, marks = self.settings.end, self.marks
        begins = 1 if len(text) and text[0] == end else 0
        try:
            content = b"".join(self._bytes[i] for i in text[begins:].tolist()).decode()
        except UnicodeDecodeError:
            return None
        first, second = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        suffix_first = bool(rng.random() < self.settings.suffix_first)
        parts = self._tokenizer.encode_batch_fast(
            [content[:first], content[first:second], content[second:]], add_special_tokens=False
        )
        prefix, middle, suffix = (list(part.ids) for part in parts)
        last = [] if ends else [end]
        size = begins + len(marks.ids) + len(prefix) + len(middle) + len(suffix) + len(last)
        over = size - len(text)
        if not 0 <= over <= len(suffix) + len(prefix):
            return None  # a text of a few tokens, or (very rarely) one that has become shorter
        kept = max(0, len(suffix) - over)
        suffix, prefix = suffix[:kept], prefix[max(0, over - len(suffix)) :]
        arranged = marks.arrange(prefix, suffix, suffix_first=suffix_first)
        return np.array([*text[:begins].tolist(), *arranged, *middle, *last], np.int64)


def make_infill(
    tokenizer: Tokenizer | None,
    tokens: NDArray[np.uint16] | NDArray[np.uint32],
    end: int | None,
    settings: tuple[float, float, int],
) -> Infill | None:
    """Return what rearranges the texts of a run, None where its rate is 0; settings: rate, share of SPM, seed.

    Raises UserError if the data cannot be used for it: no tokenizer, no end-of-text, no free ids, or ids in use.
    """
    rate, suffix_first, seed = settings
    if not rate:
        return None
    if tokenizer is None or end is None:
        raise UserError(
            "filling in the middle needs data with a tokenizer and an end-of-text token, as prepare-data writes them; "
            "leave --fim-rate out"
        )
    marks = choose_marks(tokenizer)
    for start in range(0, tokens.size, 1 << 22):
        if np.isin(tokens[start : start + (1 << 22)], marks.ids).any():
            raise UserError(
                f"the training data holds the ids {', '.join(map(str, marks.ids))}, which are to be marks for filling "
                "in the middle; prepare the data again, or leave --fim-rate out"
            )
    return Infill(tokenizer, marks, InfillSettings(rate, suffix_first, end, seed))
