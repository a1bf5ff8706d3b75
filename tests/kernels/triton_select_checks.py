"""Checks of the Triton selection, run in a process of their own by `test_triton_select`.

    python triton_select_checks.py interpret    the checks of `triton_select_cases`, in Triton's interpreter
    python triton_select_checks.py gpu          the same on a GPU
    python triton_select_checks.py compile      those of `triton_select_builds`, for a GPU that need not be there

A load out of bounds ends an interpreter's process, and the interpreter is chosen when kernels are imported. Prints one
line of JSON: name of each check, and None or the traceback.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable


def main(mode: str) -> None:
    """Runs all checks of a mode."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if mode == "interpret":
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)
    # Deterministic algorithms fill fresh memory with NaN and the largest integers: what reads it shows.
    torch.use_deterministic_algorithms(True)
    if mode == "compile":
        import triton_select_builds as module
    else:
        import triton_select_cases as module

        module.DEVICE = torch.device("cuda" if mode == "gpu" else "cpu")
    results: dict[str, str | None] = {}
    for name, check in vars(module).items():
        if name.startswith("check_"):
            results[name] = _failure(check)
            print(json.dumps({name: results[name]}), flush=True)


def _failure(check: Callable[[], None]) -> str | None:
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    main(sys.argv[1])
