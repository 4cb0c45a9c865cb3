"""The error of everything that has to do with tokens."""

from nanochat_tui.errors import UserError


class TokenizerError(UserError):
    """A tokenizer that is damaged or of a kind that is not supported, or text that it cannot take."""
