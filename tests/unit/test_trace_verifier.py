"""Grading of execution traces: a frame counts where it stands."""

from typing import Any

import pytest
from fakes import NoSandboxes
from hypothesis import given
from hypothesis import strategies as st

from verifiers.reply import FormatError
from verifiers.task import Message, Submission, Task
from verifiers.trace import FRAME_SEP, TraceVerifier, split
from verifiers.verdict import Outcome, Verdict

FRAMES = ['<|call_sep|>{"a": "1"}<|action_sep|>def f(a):', '<|line_sep|>{"a": ".."}<|action_sep|>    return a', "end"]
REASON = Message("system", "Think up to </think>.")


def task(frames: Any, *messages: Message) -> Task:
    return Task("t", "trace", messages, "trace", payload={"frames": frames} if frames is not None else {})


async def grade(reply: str, *messages: Message) -> Verdict:
    return await TraceVerifier().verify(task(FRAMES, *messages), Submission(reply), NoSandboxes())


def said(*frames: str) -> str:
    return "".join(frame + FRAME_SEP for frame in frames)


async def test_the_real_trace_is_right() -> None:
    verdict = await grade(said(*FRAMES))
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, 1.0, True)
    assert (await grade(f"\n{said(*(f' {frame} ' for frame in FRAMES))}\n")).correct, "space at the ends is none"


@pytest.mark.parametrize(
    ("frames", "reward", "words"),
    [
        (["x", *FRAMES[1:]], 2 / 3 - 1, "frame 1 of 3 is wrong"),
        ([FRAMES[0], "x", "y"], 1 / 3 - 1, "frame 2 of 3 is wrong"),
        (["x", "y", "z"], -1.0, "frame 1 of 3 is wrong"),
        (FRAMES[:2], 2 / 3 - 1, "2 frames and not 3"),
        ([*FRAMES, "more"], 3 / 4 - 1, "4 frames and not 3"),
        (FRAMES * 100, 3 / 300 - 1, "300 frames and not 3"),
        (FRAMES[1:], -1.0, "frame 1 of 3 is wrong"),
        ([FRAMES[0].replace('"1"', '"2"'), *FRAMES[1:]], 2 / 3 - 1, "frame 1 of 3 is wrong"),
    ],
)
async def test_a_wrong_trace_earns_its_share_of_right_frames(frames: list[str], reward: float, words: str) -> None:
    verdict = await grade(said(*frames))
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False)
    assert verdict.reward == pytest.approx(reward)
    assert verdict.detail == words


@pytest.mark.parametrize("reply", ["", "no frames", said(*FRAMES) + "and more", "".join(FRAMES), said(*FRAMES)[:-1]])
async def test_what_is_no_trace_earns_the_lowest(reply: str) -> None:
    verdict = await grade(reply)
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, -1.0, False)
    assert FRAME_SEP in verdict.detail


async def test_reasoning_is_left_out_where_the_task_asks_for_it() -> None:
    assert (await grade(f"{said('wrong')}</think>{said(*FRAMES)}", REASON)).correct
    assert (await grade(said(*FRAMES), REASON)).reward == -1.0
    assert (await grade(f"a</think>b</think>{said(*FRAMES)}")).reward == -1.0


@pytest.mark.parametrize("frames", [None, [], "text", [1], {"a": 1}])
async def test_a_task_without_frames_is_invalid(frames: Any) -> None:
    with pytest.raises(ValueError, match="task t: the payload of a trace task needs"):
        TraceVerifier().check_task(task(frames))
    verdict = await TraceVerifier().verify(task(frames), Submission(said("x")), NoSandboxes())
    assert (verdict.outcome, verdict.reward) == (Outcome.INVALID_TASK, None)


@given(st.lists(st.text(st.characters(exclude_characters="<"), max_size=9), min_size=1, max_size=6))
def test_what_was_joined_is_split(frames: list[str]) -> None:
    assert split(said(*frames)) == [frame.strip() for frame in frames]


@given(st.text(max_size=40))
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        assert text.count(FRAME_SEP) == len(split(text))
    except FormatError:
        assert FRAME_SEP not in text or text.rpartition(FRAME_SEP)[2].strip()


@given(st.lists(st.sampled_from([*FRAMES, "x"]), max_size=6))
async def test_only_the_real_trace_earns_more_than_0(frames: list[str]) -> None:
    verdict = await grade(said(*frames))
    assert verdict.reward is not None
    assert verdict.correct is (frames == FRAMES)
    assert verdict.reward == 1.0 if verdict.correct else -1.0 <= verdict.reward < 0
