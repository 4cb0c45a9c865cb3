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
    end: int = 50_256,
    temperature: float = 0.8,
    top_k: int = 40,
) -> str:
    """Continue `prompt` by up to `tokens` tokens and return the continuation in original text conventions."""
    generator = torch.Generator().manual_seed(seed)
    prompt_ids = tokenizer.encode(spaces_to_tabs(prompt, indentation)).ids
    ids = [end, *prompt_ids]
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
    text = tabs_to_spaces(tokenizer.decode(ids[1:], skip_special_tokens=False), indentation)
    return text[len(prompt) :]
