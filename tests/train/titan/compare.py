"""Prints, as JSON, what test_titan.py asserts: parameters on the meta device, and how far logits are apart."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchtitan.config import ParallelismConfig

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.titan.decoder import model_registry, spec_of
from nanochat_tui.train.titan.layers import Activations
from nanochat_tui.train.titan.names import our_names

SMALL: dict[str, Any] = {"vocab_size": 512, "context_length": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "two streams, tied": {},
    "four streams, a head of its own": {"n_streams": 4, "tied": False, "least_squares": True},
    "four streams of version 1": {"n_streams": 4, "mhc_version": 1},
    "plain residual": {"n_streams": 1},
    "experts": {"n_streams": 4, "n_experts": 4, "n_active_experts": 2, "hidden_dim": 128, "n_kv_heads": 1},
}


def parameters(flavor: str) -> list[int]:
    """Those of the model built on the meta device, of what torchtitan logs, and of the shape."""
    spec = model_registry(flavor)
    with torch.device("meta"):
        model = spec.model.build()
    model.verify_module_protocol()
    counted, _ = spec.model.get_nparams_and_flops(model, 1024)
    return [sum(p.numel() for p in model.parameters()), counted, PRESETS[flavor].parameters]


@torch.no_grad()
def models(shape: ModelConfig, activations: Activations) -> tuple[NanochatModel, Any]:
    torch.manual_seed(0)
    ours = NanochatModel(shape, activations=activations)
    for parameter in ours.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    theirs = spec_of("x", shape, dtype="float32", activations=activations).model.build()
    theirs.init_weights()
    weights, names = ours.state_dict(), our_names(shape)
    assert set(names) == set(dict(theirs.named_parameters())), "every parameter has a name of ours"
    for name, parameter in theirs.named_parameters():
        parameter.copy_(weights[names[name]])
    return ours, theirs


@torch.no_grad()
def initial_records() -> bool:
    """Whether the records begin as ours do."""
    shape = PRESETS["tiny"].with_(**SMALL)
    theirs = spec_of("x", shape).model.build()
    theirs.init_weights()
    ours, found, names = NanochatModel(shape).state_dict(), dict(theirs.named_parameters()), our_names(shape)
    return all(torch.equal(found[a], ours[b]) for a, b in names.items() if b.endswith("mhc"))


@torch.no_grad()
def apart(ours: NanochatModel, theirs: Any, tokens: Tensor) -> list[float]:
    """The largest difference of each token's logits."""
    return list((ours.logits(tokens) - theirs(tokens)).abs().amax(-1).flatten().tolist())


def refused() -> list[str]:
    """The parallelisms that the model names as none of its own."""
    found = []
    for name in ("tensor_parallel_degree", "context_parallel_degree", "pipeline_parallel_degree"):
        try:
            config = SimpleNamespace(parallelism=ParallelismConfig(**{name: 2}))
            spec_of("x", PRESETS["tiny"]).model.update_from_config(config=config)
        except UserError as error:
            found += [name] if str(error).startswith(f"{name} must be 1") else []
    return found


def main() -> None:
    tokens = torch.randint(0, 512, (2, 48), generator=torch.Generator().manual_seed(1))
    found = {
        name: {
            kind: apart(*models(PRESETS["tiny"].with_(**SMALL, **changes), kind), tokens) for kind in ("float", "int8")
        }
        for name, changes in SHAPES.items()
    }
    sizes = {flavor: parameters(flavor) for flavor in ("tiny", "7b", "25b-moe")}
    print(json.dumps({"parameters": sizes, "apart": found, "records": initial_records(), "refused": refused()}))


main()
