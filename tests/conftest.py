"""Makes the modules beside this file (`support`) importable from every test folder.

All tests share one compiled program per instruction set, which saves minutes: they run hundreds of tiny models of
dozens of shapes. `test_specialise` shows that a model's own program says the same, bit for bit.
"""

import os

from hypothesis import settings

from nanochat_tui.engine.compile_cache import GENERAL

os.environ.setdefault(GENERAL, "1")

# a machine that is busy must not fail a test that asks for correctness
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
