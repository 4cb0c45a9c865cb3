"""Makes the modules beside this file (`support`) importable from every test folder.

All tests share one compiled program per instruction set, which saves minutes: they run hundreds of tiny models of
dozens of shapes. `test_specialise` shows that a model's own program says the same, bit for bit.
"""

import os

from hypothesis import settings

from nanochat_tui.engine.compile.cache import GENERAL

os.environ.setdefault(GENERAL, "1")

SEARCH = "NANOCHAT_TEST_SEARCH"
"""Set to 1, property tests look for new examples at each run, as a step of `.ci/run` does; otherwise they take the same
ones every time, so that whoever runs the tests sees what the last one saw.
"""

# a machine that is busy must not fail a test that asks for correctness
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=300, print_blob=True)
settings.load_profile("search" if os.environ.get(SEARCH) == "1" else "same")
