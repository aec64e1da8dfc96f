"""The root of every error that a person can mend, and the error of a task."""

from typing import ClassVar


class UserError(Exception):
    """Its text is one sentence for people: what is wrong, where, what to do. Shown without a traceback."""

    exit_code: ClassVar[int] = 2
    """What the command ends with: 2 for bad input, 1 where a run that had begun failed."""


class InvalidTaskError(Exception):
    """The task's own code failed where no candidate had a part in it."""
