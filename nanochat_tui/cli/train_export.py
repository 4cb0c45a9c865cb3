"""`nanochat-train export`: a checkpoint becomes a GGUF, an .mhc and a tokenizer, verified."""
