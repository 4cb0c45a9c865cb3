"""The engine, in layers: generate > run > compile > kernels > (weights | simd) > layout, by contract."""
