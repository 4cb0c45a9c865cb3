"""What can be said of a file without running it; the command prints it, the application draws it."""

from nanochat_tui.formats.gguf import GGUFFile, GGUFValue, TensorInfo
from nanochat_tui.inspection.comparison import Comparison, compare
from nanochat_tui.inspection.mhc_report import MhcInspection, inspect_mhc
from nanochat_tui.inspection.rotation import Rotation, rotation
from nanochat_tui.inspection.summary import Summary, inspect_file, open_whole, summarise
from nanochat_tui.inspection.ternary_stats import TernaryStatistics, ternary_statistics
from nanochat_tui.inspection.traps import Trap, find_traps
from nanochat_tui.inspection.trits import TritReader, ternary_tensors

__all__ = [
    "Comparison",
    "GGUFFile",
    "GGUFValue",
    "MhcInspection",
    "Rotation",
    "Summary",
    "TensorInfo",
    "TernaryStatistics",
    "Trap",
    "TritReader",
    "compare",
    "find_traps",
    "inspect_file",
    "inspect_mhc",
    "open_whole",
    "rotation",
    "summarise",
    "ternary_statistics",
    "ternary_tensors",
]
