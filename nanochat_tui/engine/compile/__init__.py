"""Machine code for a model and a processor: which kernel, made how, kept where."""
