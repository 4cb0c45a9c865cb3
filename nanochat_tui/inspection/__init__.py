"""What can be said of a file without running it; the command prints it, the application draws it."""

from nanochat_tui.inspection.mhc_report import MhcInspection, inspect_mhc
from nanochat_tui.inspection.summary import Summary, inspect_file, summarise
from nanochat_tui.inspection.ternary_stats import TernaryStatistics, ternary_statistics
from nanochat_tui.inspection.trits import TritReader, ternary_tensors

__all__ = [
    "MhcInspection",
    "Summary",
    "TernaryStatistics",
    "TritReader",
    "inspect_file",
    "inspect_mhc",
    "summarise",
    "ternary_statistics",
    "ternary_tensors",
]
