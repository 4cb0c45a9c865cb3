"""Tool calls: how a model's template writes them, and finding them in what it says."""
