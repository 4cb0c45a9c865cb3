"""The train mode: start runs, watch them, talk to their checkpoints."""
