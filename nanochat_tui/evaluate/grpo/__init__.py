"""Training-Free GRPO (arXiv 2510.08191): what a frozen model learns is a list of rules in its prompt."""
