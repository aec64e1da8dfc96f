"""Files that others publish, and that are no part of this project: tests that need one are skipped without it."""

import os
from pathlib import Path
from typing import Final

import pytest

PUBLIC_DATA: Final = Path(
    os.environ.get("CWM_RL_PUBLIC_DATA") or Path(__file__).parents[2] / "shared" / "data"
).absolute()


def public(*names: str) -> Path:
    """The folder that has all of these files. Skips the test that asks, and says which are missing."""
    if missing := [name for name in names if not (PUBLIC_DATA / name).is_file()]:
        pytest.skip(
            f"{', '.join(missing)}: not in {PUBLIC_DATA}. CONTRIBUTING.md says who publishes it, and"
            " CWM_RL_PUBLIC_DATA names another folder"
        )
    return PUBLIC_DATA
