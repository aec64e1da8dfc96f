"""Tasks from JSONL files, mapped by configuration."""

import glob
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rl.tasks.drafts import Draft
from rl.tasks.forms import FORMS
from rl.tasks.rows import DataError, Row, read_rows
from verifiers.task import Limits, Message, Task

__all__ = ["DataError", "FileSource", "LimitsOverride", "load"]

FIELDS = (
    *("id", "domain", "prompt", "answer", "solution", "tests", "visible_tests"),
    *("stdin_tests", "check", "entry_point", "setup", "image", "language", "compare", "checker", "starter"),
    *("public_tests", "hidden_tests", "generated_tests", "metadata"),
    *("patch", "test_patch", "fail_to_pass", "pass_to_pass", "payload", "visible"),
)
"""What a column can be mapped to."""


TURNS = {"code": 3, "repository": 30}
"""Of an environment that answers, where a source does not limit them."""

VERIFIERS = {"answer": "math", "entry": "reasoning_gym", "fail_to_pass": "swe"}
"""By what only their payloads hold; all else is code."""


class LimitsOverride(BaseModel):
    """What one episode may use, where it differs from the defaults of `verifiers.task.Limits`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    turns: int | None = Field(None, gt=0)
    """Replies of the policy."""
    tokens: int | None = Field(None, gt=0)
    """Tokens of the whole trajectory."""
    reply_tokens: int | None = Field(None, gt=0)
    """Tokens of one reply."""
    answer_cut: bool | None = None
    """Whether a reply that is cut there is answered like one that ended; else it ends the episode."""
    prompt_tokens: int | None = Field(None, gt=0)
    """Tokens of the first prompt."""
    tool_tokens: int | None = Field(None, gt=0)
    """Tokens of one tool answer."""
    seconds: float | None = Field(None, gt=0)
    """Wall time of the acting part."""

    def apply(self) -> Limits:
        """The defaults, with what is set here."""
        return replace(Limits(), **self.model_dump(exclude_none=True))


class FileSource(BaseModel):
    """A file of tasks, or several by a pattern."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str
    """Relative to the data directory; a pattern with * is expanded, in sorted order."""
    form: Literal[
        "apps",
        "code_contests",
        "gsm8k",
        "humaneval",
        "livecodebench",
        "math",
        "mbpp",
        "reasoning_gym",
        "swe_bench",
        "swe_smith",
        "tasks",
    ] = "tasks"
    """Which columns to expect: those of a known data set, or our own."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our field -> their column, where it differs from the form's; the fields are those in FIELDS."""
    domain: str | None = None
    """Statistics are kept by it; the form's if unset."""
    verifier: str | None = None
    """Scores the answers; by what a row holds (answer, tests, ...) if unset."""
    environment: str | None = None
    """Where the policy acts, by name, `module:attribute` or `file.py:attribute`: opened with `async with
    attribute(task, sandboxes)`, it has `files` and `respond(reply, left)`. `code` where a task has public tests and
    `single_turn` elsewhere if unset."""
    system: str | None = None
    """The system message; one that states the verifier's format rule if unset, none if empty."""
    template: str = "{prompt}"
    """The user's message, round the row's prompt."""
    limit: int | None = Field(None, gt=0)
    """Take this many tasks, from the start."""
    limits: LimitsOverride = LimitsOverride()
    """What one episode may use."""

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(columns) - set(FIELDS)):
            raise ValueError(f"there is no field '{unknown[0]}' to map; known are {', '.join(FIELDS)}")
        return columns

    @field_validator("template")
    @classmethod
    def _has_prompt(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("the template must contain {prompt}")
        return template


def load(source: FileSource, root: Path, check: Callable[[Task], None] | None = None) -> list[Task]:
    """All tasks of a source, in the files' order.

    `check` is the verifier's `check_task`. Raises DataError for a file, row or column that cannot be used.
    """
    tasks: list[Task] = []
    seen: dict[str, str] = {}
    for row in _rows(source, root):
        task = _task(source, root, row, FORMS[source.form].read(row))
        if task.id in seen:
            raise row.error(f"the id '{task.id}' is taken by {seen[task.id]}", "id")
        seen[task.id] = f"{row.file}, line {row.line}"
        if check is not None:
            try:
                check(task)
            except ValueError as error:
                raise row.error(str(error)) from error
        tasks.append(task)
        if len(tasks) == source.limit:
            break
    return tasks


def _rows(source: FileSource, root: Path) -> Iterator[Row]:
    columns = {**FORMS[source.form].columns, **source.columns}
    path = root / source.path
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not files:
        raise DataError(f"{path}: there is no such file")
    for file in files:
        yield from read_rows(file, columns)


def _task(source: FileSource, root: Path, row: Row, draft: Draft) -> Task:
    system = draft.system if source.system is None else source.system
    user = source.template.replace("{prompt}", draft.prompt)
    messages = [Message("system", system)] if system else []
    verifier = next((name for key, name in VERIFIERS.items() if key in draft.payload), "code")
    if source.form == "tasks" and row.has("payload") and source.verifier is None:
        raise row.error("is for a verifier of one's own: name it in the source, verifier = ...", "payload")
    environment, limits = source.environment or draft.environment, source.limits.apply()
    if source.limits.turns is None:
        limits = replace(limits, turns=TURNS.get(environment, limits.turns))
    return Task(
        id=row.text("id") if row.has("id") else f"{_stem(row.file, root)}/{row.line}",
        domain=source.domain or draft.domain,
        messages=(*messages, Message("user", user)),
        verifier=source.verifier or verifier,
        environment=environment,
        payload=draft.payload,
        visible=draft.visible,
        limits=limits,
        image=row.text("image") if row.has("image") else draft.image,
    )


def _stem(file: Path, root: Path) -> str:
    """A file's path below `root`, or its name where it lies elsewhere, without what follows the name's first dot."""
    below = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    return below.with_name(file.name.partition(".")[0]).as_posix()
