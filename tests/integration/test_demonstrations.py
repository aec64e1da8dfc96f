"""Every generator's demonstrations in the real sandbox: what they show is what happens, and they solve their tasks."""

import asyncio

import pytest
from play import played

from rl.tasks.generated import GeneratedSource
from rl.tasks.generators import GENERATORS
from rollout_workers.sandbox import bubblewrap
from verifiers.sandbox import Sandboxes

pytestmark = pytest.mark.required


@pytest.fixture(scope="module")
def sandboxes() -> Sandboxes:
    probe, backend = asyncio.run(bubblewrap.probe())
    if backend is None:
        pytest.skip(probe.why)
    return backend


@pytest.mark.parametrize("difficulty", [1, 2, 3])
@pytest.mark.parametrize("name", GENERATORS)
async def test_demonstrations_are_right(sandboxes: Sandboxes, name: str, difficulty: int) -> None:
    source = GeneratedSource.model_validate({"generator": name, "difficulty": difficulty})
    limit = asyncio.Semaphore(2)

    async def one(index: int) -> None:
        async with limit:
            verdict, answers = await played(source, index, 0.0, sandboxes)
        assert verdict.correct, verdict.detail
        for shown, said in answers:
            assert said is not None
            assert shown.role == said.role
            assert shown.content.partition("\n</output>")[0] == said.content.partition("\n</output>")[0]

    await asyncio.gather(*(one(index) for index in range(6)))
