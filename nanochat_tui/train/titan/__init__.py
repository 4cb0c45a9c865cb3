"""The nanochat decoder for torchtitan: `torchrun … -m torchtitan.train --module nanochat_tui.train.titan --config …`.

`layers` and `decoder` hold what torchtitan does not have (ternary linears, mHC); its FSDP2, expert parallelism,
optimisers and checkpoints do the rest. `convert` makes a checkpoint folder of ours of one of torchtitan's. See
docs/scale-out.md.
"""
