"""Conversations to learn from: what a row may hold, and what is said of one that may not be used."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rl.tasks.conversations import Shuffled, read
from rl.tasks.rows import DataError
from verifiers.task import Message

ASK = {"role": "user", "content": "2 + 2?"}
SAY = {"role": "assistant", "content": "4"}


def written(directory: Path, *rows: Any) -> Path:
    path = directory / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_all_roles_are_read(tmp_path: Path) -> None:
    ran = {"role": "tool: bash", "content": ""}
    talk = [{"role": "system", "content": "s"}, ASK, SAY, {"role": "tool", "content": "ok"}, SAY, ran, SAY]
    (one,) = read(written(tmp_path, {"messages": talk, "more": 1}))
    assert [message.role for message in one] == [
        *("system", "user", "assistant", "tool: output", "assistant", "tool: bash", "assistant")
    ]
    assert one[1:3] == (Message("user", "2 + 2?"), Message("assistant", "4"))


def test_other_names_can_be_mapped(tmp_path: Path) -> None:
    row = {"conversation": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}
    columns = {"messages": "conversation", "role": "from", "content": "value"}
    (one,) = read(written(tmp_path, row), columns)
    assert one == (Message("user", "q"), Message("assistant", "a"))
    with pytest.raises(DataError, match="there is no field 'mesages' to map; known are messages, role, content"):
        list(read(written(tmp_path, row), {"mesages": "conversation"}))


def test_a_packed_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps({"messages": [ASK, SAY]}) + "\n{broken\n").encode()))
    rows = read(path)
    assert next(rows)[0].role == "user", "the first row is there before the second is looked at"
    with pytest.raises(DataError, match=r"talks.jsonl.gz, line 2: is not JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "bot", "content": "x"}, SAY], "message 1 has the unknown role 'bot': known are system, user, "),
        ([ASK, {"content": "4"}], "message 2 has the unknown role None: known are system, user, assistant, tool and "),
        ([{"role": "tool: ", "content": "x"}, SAY], "message 1 has the unknown role 'tool: '"),
        ([{"role": "tool: a<|eot_id|>", "content": "x"}, SAY], "message 1 has the unknown role"),
        ([ASK], "holds no turn of the assistant"),
        ([], "is empty"),
        ([SAY], "begins with the assistant"),
        ([ASK, SAY, SAY], "messages 2 and 3 are both the assistant's"),
        ([ASK, {"role": "assistant", "content": [1]}], r"the content of message 2 must be text, not \[1\]"),
        ([ASK, {"role": "assistant"}], "the content of message 2 must be text, not None"),
        ([ASK, {"role": "assistant", "content": " \n"}], "the content of message 2 is empty"),
        (["hello"], "message 1 must be an object with role and content"),
        ("hello", "must be a list, not text"),
        (None, "missing; the row has messages"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, messages: Any, words: str) -> None:
    path = written(tmp_path, {"messages": [ASK, SAY]}, {"messages": messages})
    with pytest.raises(DataError, match=rf"talks.jsonl, line 2, column 'messages': {words}") as caught:
        list(read(path))
    assert "\n" not in str(caught.value)


def test_every_epoch_has_all_of_them_in_another_order() -> None:
    talks = [(Message("user", str(number)), Message("assistant", "x")) for number in range(20)]
    stream = Shuffled(talks, 3)
    first, second = ([stream(index) for index in range(begin, begin + 20)] for begin in (0, 20))
    assert set(first) == set(second) == set(talks)
    assert first != second
    assert [stream(index) for index in range(20)] == first, "also when it goes back"
    assert [Shuffled(talks, 3)(index) for index in range(20, 40)] == second
    assert [Shuffled(talks, 4)(index) for index in range(20)] != first
