"""Makes the modules beside this file (`support`) importable from every test folder.

All tests share one compiled program per instruction set, which saves minutes: they run hundreds of tiny models of
dozens of shapes. `test_specialise` shows that a model's own program says the same, bit for bit.
"""

import os

from nanochat_tui.engine.compile_cache import GENERAL

os.environ.setdefault(GENERAL, "1")
