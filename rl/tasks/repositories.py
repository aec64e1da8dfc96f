"""Rows of SWE-bench and SWE-smith: a repository in an image, what is wrong with it, and the tests that tell."""

import json
from collections.abc import Mapping
from typing import Any, Final

from rl.tasks.drafts import Draft
from rl.tasks.rows import Row

ROOT: Final = "/testbed"
PYTHON: Final = "/opt/miniconda3/envs/testbed/bin/python"
"""Where the images of both have repository and interpreter."""
BENCH_IMAGE: Final = "swebench/sweb.eval.x86_64.{}:latest"


def swe_bench(row: Row) -> Draft:
    """The repository stands before the repair; hidden tests come as a patch."""
    patches = {"patch": row.text("patch"), "test_patch": row.text("test_patch")}
    image = None if row.has("image") else BENCH_IMAGE.format(row.text("id").lower().replace("__", "_1776_"))
    return _draft(row, patches, {}, image)


def swe_smith(row: Row) -> Draft:
    """The patch brings the fault in; its reverse is the repair, and the tests are there."""
    fault = row.text("patch")
    return _draft(row, {"patch": reverse(fault)}, {"setup_patch": fault}, None)


def _draft(row: Row, hidden: Mapping[str, Any], state: Mapping[str, Any], image: str | None) -> Draft:
    place = {"root": ROOT, **state}
    ids = {name: _ids(row, name) for name in ("fail_to_pass", "pass_to_pass")}
    payload = {**place, **hidden, **ids, "python": PYTHON}
    return Draft(row.text("prompt").strip(), "swe", payload, place, environment_name="repository", image=image)


def _ids(row: Row, field: str) -> list[str]:
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise row.error(f"is no JSON: {error}", field) from error
    if not isinstance(value, list):
        raise row.error("must be a list of test ids, or a text of JSON that is one", field)
    return [str(one) for one in value]


def reverse(patch: str) -> str:
    """A diff that undoes it, for comparing: added and removed lines change places, the removed ones first again."""
    swapped = {"+": "-", "-": "+"}
    lines: list[str] = []
    run: dict[str, list[str]] = {"-": [], "+": []}
    mark = ""
    for line in [*patch.split("\n"), None]:
        if line is not None and line[:1] in swapped and not line.startswith(("+++ ", "--- ")):
            mark = swapped[line[:1]]
            run[mark].append(mark + line[1:])
        elif line is not None and line.startswith("\\") and mark:  # no newline after the line above
            run[mark].append(line)
        else:
            lines += [*run["-"], *run["+"]] + ([] if line is None else [line])
            run, mark = {"-": [], "+": []}, ""
    return "\n".join(lines)
