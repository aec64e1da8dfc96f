"""`cwm-rl image build`: the base image of docker sandboxes, by the script that machines without a Python use too."""

import subprocess
from pathlib import Path
from typing import Final, Literal

from verifiers.errors import UserError

SCRIPT: Final = Path(__file__).parents[1] / "deploy" / "images" / "make-base.sh"

Method = Literal["auto", "dockerfile", "debootstrap"]


class ImageError(UserError):
    """An image that could not be made."""


def build(method: Method, *, new: bool) -> None:
    """Make it, unless it is there and no `new` one is asked for; prints what it does. Raises ImageError."""
    if not SCRIPT.is_file():
        raise ImageError(f"{SCRIPT} is not there: run this from a clone of the repository")
    done = subprocess.run([SCRIPT, "--method", method, *(["--new"] if new else [])], check=False)
    if done.returncode:
        raise ImageError(f"the base image was not made (exit code {done.returncode}); what stands above says why")
