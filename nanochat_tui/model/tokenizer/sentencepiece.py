"""SentencePiece vocabularies of the kind `llama`: merges by score, U+2581 for a space, single bytes for the rest.

llama.cpp merges the pair of neighbours whose union is the token with the highest score, the leftmost of equals, until
no union is a token. That is byte-pair merging with every way to make a token ranked by the token's score, which the
`tokenizers` package does at native speed; a file holds no merges, so they are derived here. Source: Kudo and
Richardson 2018 (SentencePiece); llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from nanochat_tui.model.tokenizer.errors import TokenizerError
from nanochat_tui.text import display_safe

SPACE = "\u2581"
"""What a space is spelled as."""


def derived_merges(tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]) -> list[tuple[str, str]]:
    """Return every pair of tokens whose union is a mergeable token, by falling score of the union."""
    known = {token for token, usable in zip(tokens, mergeable, strict=True) if usable}
    found: list[tuple[float, int, str, str]] = []
    for index, token in enumerate(tokens):
        if len(token) < 2 or token not in known:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                found.append((-scores[index], index, left, right))
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


def spm_tokenizer(
    tokens: Sequence[str],
    scores: Sequence[float],
    mergeable: Sequence[bool],
    *,
    unknown: str | None,
    special: Sequence[str],
    user_defined: Sequence[str],
    space_prefix: bool,
) -> Tokenizer:
    """Build a tokenizer from a vocabulary in order of ids.

    Parameters: tokens; their scores; whether text may become each by merging (not marks or bytes); the token for what
    cannot be spelled at all, if there is one; the tokens matched whole; whether a text, and each piece of it between
    matched tokens, gets a space in front.
    Returns a tokenizer that adds no BOS. Raises TokenizerError if the parts do not fit together.
    """
    try:
        model = BPE(
            {token: index for index, token in enumerate(tokens)},
            derived_merges(tokens, scores, mergeable),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"the file's vocabulary is damaged ({display_safe(str(error))})") from error
    tokenizer = Tokenizer(model)
    steps = [normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *steps] if space_prefix else steps)
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])
    return tokenizer
