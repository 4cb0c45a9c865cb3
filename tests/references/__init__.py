"""Architectures once more, in plain NumPy with float64 sums, from the published formulas alone.

They share no code with the engine or with the project's descriptions: every number comes from the file's own keys.
Each function takes an open file and token ids and returns logits float64 [tokens, vocab]. `rounded` applies the
rounding that ternary models were trained with (int8, one scale per token) before every ternary matrix and the head.
"""
