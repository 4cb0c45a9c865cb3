"""What can go wrong between a checkpoint and a model file."""

from nanochat_tui.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or does not hold the model it says."""


class ExportError(UserError):
    """A written file that is not, bit for bit, the model it was made from. Exit code 1."""

    exit_code = 1
