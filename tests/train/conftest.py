from __future__ import annotations

import pytest

collect_ignore_glob: list[str] = []
try:
    import torch
except ImportError:
    # the torch-free part (data preparation) still runs; say once what does not
    collect_ignore_glob = ["test_*.py"]

    def pytest_report_header() -> str:
        return "PyTorch is not installed: the trainer's tests do not run (pip install '.[train]')"
else:

    @pytest.fixture(autouse=True)
    def _one_thread() -> None:
        """Small products are faster on one thread, and tests must not depend on the machine's size."""
        torch.set_num_threads(1)
