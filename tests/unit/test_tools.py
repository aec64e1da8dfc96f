"""The tools of the software-engineering protocol: calls, edits, and what each does in a sandbox."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from plain_sandbox import PlainSandbox, PlainSandboxes

from rollout_workers.tools.calls import Call, ToolError, find_call
from rollout_workers.tools.edits import Edit, apply_edit, parse_edit
from rollout_workers.tools.repository import FILE_LIMIT, OUTPUT_LIMIT, Repository
from verifiers import checkout
from verifiers.sandbox import ExecResult, SandboxSpec, SandboxUnavailable

FILES = {"shop.py": b"def double(x):\n    return x * 3\n", "docs/notes.txt": b"one\ntwo\n"}
BLOCK = "shop.py\n<<<<<<< SEARCH\n    return x * 3\n=======\n    return x * 2\n>>>>>>> REPLACE"


def test_a_call_is_found_among_words() -> None:
    text = "I look first.\n<tool: bash>\nls -l\n\ncat a\n</tool>\nThen I think."
    assert find_call(text) == Call("bash", "ls -l\n\ncat a")
    assert find_call("<tool: edit> \t\nx\n</tool> ") == Call("edit", "x")
    assert find_call("<tool: submit>\n</tool>") == Call("submit", "")
    assert find_call("<tool: bash>\n\n  indented\n\n</tool>") == Call("bash", "  indented")


@pytest.mark.parametrize("text", ["", "Done.", "use <tool: bash> like this", "a </tool> b", "<tool: Bash!>"])
def test_words_are_no_call(text: str) -> None:
    assert find_call(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "<tool: bash>\nls",
        "ls\n</tool>",
        "</tool>\n<tool: bash>",
        "<tool: bash>\nls\n</tool>\n<tool: bash>\nls\n</tool>",
        "<tool: bash>\n<tool: edit>\n</tool>",
        "<tool: bash>\nls\n</tool>\n</tool>",
    ],
)
def test_anything_but_one_whole_call_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ToolError, match="Write exactly one call a turn"):
        find_call(text)


@given(st.text(alphabet="ab \n<>/:tool", max_size=60))
def test_no_text_breaks_the_search(text: str) -> None:
    try:
        call = find_call(f"<tool: bash>\n{text}\n</tool>")
    except ToolError:
        return
    assert call is not None
    assert call.content == text.strip("\n")


def test_an_edit_is_a_path_and_one_block() -> None:
    assert parse_edit(BLOCK) == Edit("shop.py", "    return x * 3", "    return x * 2")
    assert parse_edit("a b.py \n<<<<<<< SEARCH\na\n\nb\n=======\n>>>>>>> REPLACE\n\n") == Edit("a b.py", "a\n\nb", "")
    assert parse_edit("a\n<<<<<<< SEARCH\nx\n=======\ny\n=======\n>>>>>>> REPLACE") == Edit("a", "x", "y\n=======")
    assert parse_edit("a\n<<<<<<< SEARCH\nx  # =======\n=======\ny\n>>>>>>> REPLACE") == Edit("a", "x  # =======", "y")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "shop.py",
        "<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE",
        "a\n<<<<<<< SEARCH\nx\n>>>>>>> REPLACE",
        "a\n<<<<<<< SEARCH\nx\n=======\ny",
        "a\nx\n=======\ny\n>>>>>>> REPLACE",
        "a\n<<<<<<< SEARCH\nx # ======= y\n>>>>>>> REPLACE",
        "a\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\nmore",
        f"{BLOCK}\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE",
    ],
)
def test_what_is_no_edit_is_refused_with_the_form(content: str) -> None:
    with pytest.raises(ToolError, match="An edit is a path, then one"):
        parse_edit(content)


def test_an_edit_must_search_for_something() -> None:
    with pytest.raises(ToolError, match="search text is empty"):
        parse_edit("a\n<<<<<<< SEARCH\n=======\ny\n>>>>>>> REPLACE")


def test_an_edit_changes_what_it_matches_and_shows_it_with_its_surroundings() -> None:
    text = "".join(f"line {number}\n" for number in range(1, 31))
    new, shown = apply_edit(text, Edit("f", "line 15\n", "first\nsecond\n"))
    assert new == text.replace("line 15\n", "first\nsecond\n")
    lines = shown.splitlines()
    assert (lines[0], lines[8], lines[9]) == ("7 line 7", "15 first", "16 second")
    assert all(line == f"{number} {new.splitlines()[number - 1]}" for number, line in enumerate(lines, start=7))
    assert len(lines) in range(18, 20)


@pytest.mark.parametrize(("text", "count"), [("x = 2", 0), ("x = 1\nx = 1", 2), ("aaa", 2)])
def test_an_edit_that_matches_not_exactly_once_is_refused(text: str, count: int) -> None:
    search = "aa" if text == "aaa" else "x = 1"
    with pytest.raises(ToolError, match=f"exactly once in f, and matches {count} times"):
        apply_edit(text, Edit("f", search, "y"))


@given(
    before=st.text("ab\n", max_size=30),
    old=st.text("xy\n.*", min_size=1, max_size=9),
    after=st.text("ab\n", max_size=30),
)
def test_an_edit_replaces_text_and_not_a_pattern(before: str, old: str, after: str) -> None:
    text = f"{before}<{old}>{after}"
    new, _ = apply_edit(text, Edit("f", f"<{old}>", r"\1"))
    assert new == rf"{before}\1{after}"


@pytest_asyncio.fixture
async def repository() -> AsyncIterator[Repository]:
    async with PlainSandboxes().open(SandboxSpec(files=FILES)) as sandbox:
        one = Repository(sandbox)
        await checkout.lay_out(sandbox, {})
        yield one


async def run(repository: Repository, tool: str, content: str) -> str:
    return await repository.run(Call(tool, content))


async def refused(repository: Repository, tool: str, content: str) -> str:
    with pytest.raises(ToolError) as caught:
        await run(repository, tool, content)
    return str(caught.value)


async def test_a_session_goes_on_from_command_to_command(repository: Repository) -> None:
    await run(repository, "bash", "cd docs; here=$(pwd); export WORD='a b'; say() { echo \"said $1\"; }; list=(1 2)")
    said = await run(repository, "bash", 'say "$WORD"; basename "$PWD"; [ "$here" = "$PWD" ] && echo "${list[1]}"')
    assert said == "said a b\ndocs\n2"
    await run(repository, "bash", "cd ..; unset WORD; TMPDIR=/nowhere")
    assert await run(repository, "bash", 'echo "<$WORD>" $TMPDIR; ls') == "<> /nowhere\ndocs\nshop.py"


async def test_two_repositories_share_no_session(repository: Repository) -> None:
    await run(repository, "bash", "secret=1")
    async with PlainSandboxes().open() as sandbox:
        assert await run(Repository(sandbox), "bash", 'echo "<$secret>"') == "<>"


async def test_both_outputs_in_their_order_and_the_exit_code_are_told(repository: Repository) -> None:
    assert await run(repository, "bash", "echo a; echo b >&2; echo c; (exit 3)") == "a\nb\nc\nexit code 3"
    assert await run(repository, "bash", "false") == "exit code 1"
    assert await run(repository, "bash", "true") == ""
    assert "syntax error" in await run(repository, "bash", "if then")
    assert await run(repository, "bash", "cat") == "", "there is nothing to read"


async def test_state_outlives_a_failure_but_no_exit(repository: Repository) -> None:
    await run(repository, "bash", "x=7")
    assert await run(repository, "bash", 'echo "$x"; nonsense') != ""
    assert await run(repository, "bash", 'echo "$x"') == "7"
    assert await run(repository, "bash", "exit 4") == "exit code 4\nThe shell was restarted."
    assert await run(repository, "bash", 'echo "<$x>"') == "<>"


async def test_much_output_is_cut_and_said_so(repository: Repository) -> None:
    said = await run(repository, "bash", f"head -c {OUTPUT_LIMIT + 1} /dev/zero | tr '\\0' x")
    assert said == "x" * OUTPUT_LIMIT + "\nThe output was cut."
    assert await run(repository, "bash", r"printf '\377'") == "\ufffd"


class Hurried(PlainSandbox):
    """Its programs have half a second."""

    async def shell(self, *text: Any, **options: Any) -> ExecResult:
        return await super().shell(*text, **options | {"timeout": 0.5})


async def test_a_command_that_takes_too_long_restarts_the_shell(tmp_path: Path) -> None:
    sandbox = Hurried(tmp_path)
    one = Repository(sandbox)
    await run(one, "bash", "x=1")
    said = await run(one, "bash", "echo begun; sleep 60")
    assert said == "begun\nThe command took more than 120 s; the shell was restarted."
    assert await run(one, "bash", 'echo "<$x>"') == "<>"
    await sandbox.close()


async def test_an_edit_of_a_file(repository: Repository) -> None:
    assert await run(repository, "edit", BLOCK) == "1 def double(x):\n2     return x * 2"
    assert await run(repository, "bash", "cat shop.py") == "def double(x):\n    return x * 2"
    assert "matches 0 times" in await refused(repository, "edit", BLOCK)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nothing.py", "There is no file nothing.py."),
        ("../shop.py", "cannot be read"),
        ("/etc/passwd", "cannot be read"),
        ("docs", "cannot be read"),
        ("link", "cannot be read"),
        ("binary", "cannot be read"),
        ("large", "cannot be read"),
    ],
)
async def test_files_that_cannot_be_edited_are_named(repository: Repository, path: str, words: str) -> None:
    make = f"ln -s /etc/passwd link; printf '\\377' > binary; head -c {FILE_LIMIT + 1} /dev/zero > large"
    await run(repository, "bash", make)
    said = await refused(repository, "edit", BLOCK.replace("shop.py", path, 1))
    assert words in said
    assert path in said
    assert "root:" not in said


async def test_a_file_is_created_where_none_is_and_its_parent_is(repository: Repository) -> None:
    assert await run(repository, "create", "docs/new.py\nx = 1\n\ny = 2") == "Created docs/new.py."
    assert await run(repository, "bash", "cat docs/new.py; git status --short") == "x = 1\n\ny = 2\n?? docs/new.py"
    for path in ("shop.py", "docs", "nowhere/new.py"):
        assert f"{path} exists, or its parent" in await refused(repository, "create", f"{path}\nx")
    for path in ("../new.py", "/tmp/new-file-of-a-test.py", "", "-x/../../y"):
        assert await refused(repository, "create", f"{path}\nx")
    assert await run(repository, "create", "-n\nx") == "Created -n."


async def test_a_patch_is_submitted_and_the_last_one_counts(repository: Repository) -> None:
    assert repository.patch == b""
    assert "There is no file fix.patch" in await refused(repository, "submit", "fix.patch")
    await run(repository, "bash", "git diff > fix.patch")
    assert "fix.patch is empty: make a patch" in await refused(repository, "submit", "fix.patch")
    assert repository.patch == b""
    await run(repository, "edit", BLOCK)
    await run(repository, "bash", "git diff > fix.patch")
    assert await run(repository, "submit", " fix.patch\n") == "Submitted."
    assert b"-    return x * 3\n+    return x * 2\n" in repository.patch
    assert b"fix.patch" not in repository.patch
    first = repository.patch
    await run(repository, "bash", "echo other > other.patch; : > fix.patch")
    assert "is empty" in await refused(repository, "submit", "fix.patch")
    assert repository.patch == first, "what was submitted stays"
    await run(repository, "submit", "other.patch")
    assert repository.patch == b"other\n"


async def test_the_history_is_one_commit_of_nobody(repository: Repository) -> None:
    said = await run(
        repository, "bash", "git log --all --format='%an %s'; git reflog | wc -l; git remote; git status -s"
    )
    assert said == "cwm-rl base\n1"


async def test_unknown_tools_and_what_no_command_can_hold(repository: Repository) -> None:
    assert await refused(repository, "python", "1") == "There is no tool python; there are bash, edit, create, submit."
    for tool in ("bash", "edit", "create", "submit"):
        assert await refused(repository, tool, "a\0b") == "A call cannot hold a NUL character."


class Bare(PlainSandbox):
    """Without git."""

    async def exec(self, *_: Any, **__: Any) -> ExecResult:
        return ExecResult(b"", b"sh: 1: git: not found\n", 127)


async def test_a_sandbox_without_git_is_a_failure_of_ours(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="git: not found"):
        await checkout.lay_out(Bare(tmp_path), {})
