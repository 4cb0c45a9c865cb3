"""LLVM IR for 16-lane kernels: what the engine's kernels are written in.

Plain Numba loops reach a twentieth of the memory bandwidth on 2-bit weights, so kernels emit vector
instructions themselves (`emitter`), with the few instruction-set specific dot products in `isa`, and
become callable from Numba code by the decorator in `intrinsics`.
"""

NARROW = "+prefer-256-bit"
"""Among a target's features: vectors of 512 bits are to be taken apart, though the processor has them."""
