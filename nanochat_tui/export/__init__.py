"""Arrays in, files out, without PyTorch: a checkpoint becomes GGUF, `.mhc` and tokenizer, and proves itself."""

from nanochat_tui.export.checkpoint import load_checkpoint
from nanochat_tui.export.errors import CheckpointError, ExportError
from nanochat_tui.export.gguf_export import export_model
from nanochat_tui.export.llama_export import export_llama
from nanochat_tui.export.reference import reference_logits
from nanochat_tui.export.tokenizer_choice import tokenizer_for
from nanochat_tui.export.verify import ExportReport, LogitsAgreement, compare_logits, verify_export

__all__ = [
    "CheckpointError",
    "ExportError",
    "ExportReport",
    "LogitsAgreement",
    "compare_logits",
    "export_llama",
    "export_model",
    "load_checkpoint",
    "reference_logits",
    "tokenizer_for",
    "verify_export",
]
