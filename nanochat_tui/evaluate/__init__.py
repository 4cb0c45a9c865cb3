"""Measuring models on text they were not trained on: perplexity, accuracy, code that parses, and baselines."""
