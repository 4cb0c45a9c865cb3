"""Short samples during training: slow and simple, the engine is for the rest."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanochat_tui.model.text import spaces_to_tabs, tabs_to_spaces
from nanochat_tui.train.model import NanochatModel


@torch.no_grad()
def write_sample(
    model: NanochatModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tokens: int,
    seed: int,
    indentation: int,
    end: int | None,
    temperature: float = 0.8,
    top_k: int = 40,
) -> str:
    """Continue `prompt` by up to `tokens` tokens and return the continuation in original text conventions.

    `end` is the id of the token that separates documents in the training data: a sample begins after it and ends with
    it; None where the data's is not known. Without it an empty prompt gives an empty text.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt_ids = tokenizer.encode(spaces_to_tabs(prompt, indentation)).ids
    before = [] if end is None else [end]
    ids = [*before, *prompt_ids]
    if not ids:
        return ""
    device = model.token_embd.weight.device
    for _ in range(tokens):
        window = torch.tensor([ids[-model.config.context_length :]], device=device)
        logits: Tensor = model.logits(window)[0, -1].float().cpu() / temperature
        best = logits.topk(min(top_k, logits.numel()))
        choice = int(torch.multinomial(best.values.softmax(-1), 1, generator=generator))
        token = int(best.indices[choice])
        if token == end:
            break
        ids.append(token)
    text = tabs_to_spaces(tokenizer.decode(ids[len(before) :], skip_special_tokens=False), indentation)
    return text[len(prompt) :]


def whitespace_flags(tokenizer: Tokenizer | None, vocabulary: int) -> Tensor:
    """Which ids stand for white space only, bool [vocabulary]; none without a tokenizer."""
    flags = torch.zeros(vocabulary, dtype=torch.bool)
    if tokenizer is not None:
        texts = tokenizer.decode_batch([[i] for i in range(min(vocabulary, tokenizer.get_vocab_size()))])
        flags[: len(texts)] = torch.tensor([bool(t) and t.isspace() for t in texts])
    return flags
