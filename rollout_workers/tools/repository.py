"""Bash, edit, create and submit on a repository in one sandbox. Each returns what the policy sees of it."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from rollout_workers.tools.calls import Call, ToolError
from rollout_workers.tools.edits import apply_edit, parse_edit
from verifiers.sandbox import Sandbox

BASH_SECONDS: Final = 120.0
FILE_LIMIT: Final = 1 << 20
OUTPUT_LIMIT: Final = 1 << 16


class Repository:
    """The tools of one episode, whose commands have `seconds` together. Methods raise ToolError, SandboxError."""

    def __init__(self, sandbox: Sandbox, seconds: float = math.inf) -> None:
        self._sandbox = sandbox
        self._left = seconds
        self.patch = b""
        """The diff that was submitted last; empty before."""

    @property
    def is_spent(self) -> bool:
        """Whether its commands have used their time up."""
        return self._left <= 0

    async def run(self, call: Call) -> str:
        """Run the tool that a call names; returns what the policy sees. Raises ToolError, SandboxError."""
        if call.tool not in TOOLS:
            raise ToolError(f"There is no tool {call.tool}; there are {', '.join(TOOLS)}.")
        if "\0" in call.content:
            raise ToolError("A call cannot hold a NUL character.")
        return await TOOLS[call.tool](self, call.content)

    async def bash(self, command: str) -> str:
        """Standard output and error of a command, in the state that the one before it left."""
        seconds, began = min(BASH_SECONDS, self._left), time.monotonic()
        result = await self._sandbox.shell(command, timeout=seconds, output_limit=OUTPUT_LIMIT)
        self._left -= time.monotonic() - began
        text = result.stdout.decode(errors="replace").rstrip("\n")
        notes = []
        if result.truncated:
            notes.append("The output was cut.")
        if result.timed_out:
            notes.append(f"The command took more than {seconds:g} s; the shell was restarted.")
        else:
            notes += [f"exit code {result.exit_code}"] * (result.exit_code != 0)
            notes += ["The shell was restarted."] * result.ended
        return "\n".join([*([text] if text else []), *notes])

    async def edit(self, content: str) -> str:
        """Replace text that occurs once in a file."""
        edit = parse_edit(content)
        new, shown = apply_edit(await self._text(edit.path), edit)
        await self._write(edit.path, new)
        return shown

    async def create(self, content: str) -> str:
        """Make a file: its path on the first line, its text after that. It must not exist, its parent must."""
        first, _, text = content.partition("\n")
        path = first.strip()
        await self._write(path, f"{text}\n", new=True)
        return f"Created {path}."

    async def submit(self, content: str) -> str:
        """Hand in a patch file; may be repeated, the last one counts."""
        path = content.strip()
        patch = (await self._text(path)).encode()
        if not patch.strip():
            raise ToolError(f"{path} is empty: make a patch, for example with git diff > {path or 'fix.patch'}.")
        self.patch = patch
        return "Submitted."

    async def _text(self, path: str) -> str:
        try:
            return (await self._sandbox.read(path, limit=FILE_LIMIT)).decode()
        except FileNotFoundError:
            raise ToolError(f"There is no file {path}.") from None
        except ValueError as error:  # not below the working directory, too large, no text
            raise ToolError(f"{path} cannot be read: {error}.") from None

    async def _write(self, path: str, text: str, *, new: bool = False) -> None:
        try:
            await self._sandbox.write(path, text.encode(), new=new)
        except (FileExistsError, FileNotFoundError):
            raise ToolError(f"{path} exists, or its parent directory does not.") from None
        except ValueError as error:
            raise ToolError(f"{path} cannot be written: {error}.") from None


TOOLS: Final[Mapping[str, Callable[[Repository, str], Awaitable[str]]]] = {
    "bash": Repository.bash,
    "edit": Repository.edit,
    "create": Repository.create,
    "submit": Repository.submit,
}
"""By the name that a call gives."""
