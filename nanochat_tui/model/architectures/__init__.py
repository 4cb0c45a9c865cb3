"""One file per GGUF architecture: its metadata keys and tensor names."""
