"""The supervised stage: what it learns from, that it learns, and that it goes on where it was interrupted."""

import fcntl
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TINY, tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rl.cli import main
from rl.init_model import InitModel
from rl.learner import model as policy
from rl.learner.muon import Muon, orthogonal
from rl.learner.packing import MicroBatch, Row, pack
from rl.learner.replicas import Replicas
from rl.sft.config import SftConfig
from rl.sft.data import CHUNK, Cursor, NothingFits, batches, demonstration_row
from rl.sft.stage import SftError, SftInterrupted, Stage, from_file, train, warm_start
from rl.sft.trainer import SftFailed, partial_of
from rl.tasks.conversations import Shuffled, read
from rollout_workers.clock import Clock
from rollout_workers.renderer import Renderer
from verifiers.task import Message

SMALL = SftConfig(tokens=24_000, batch_tokens=600, threads=1, lr=0.01, muon_lr=0.02)


def talk(index: int) -> tuple[Message, ...]:
    """Say the letter again; with a turn of a tool in every third one."""
    letter = "abcd"[index % 4]
    first = (Message("user", letter), Message("assistant", letter * 3))
    return first if index % 3 else (*first, Message("tool: x", letter), Message("assistant", letter))


def silent(text: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def renderer(base: Path) -> Renderer:
    return Renderer.load(str(base))


def stage(base: Path, conversations: Callable[[int], Sequence[Message]] = talk, **settings: Any) -> Stage:
    return Stage(str(base), conversations, {"test": 1}, SMALL.model_copy(update=settings))


def of_policy(net: Any, row: Row) -> torch.Tensor:
    """Log-probabilities of what the policy writes."""
    return policy.forward(net, pack([row], 1)[0], 1.0).logp[torch.from_numpy(row.mask)]


def gradient(net: Any, row: Row) -> dict[str, torch.Tensor]:
    net.zero_grad(set_to_none=True)
    (-of_policy(net, row).mean()).backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def test_only_what_the_policy_writes_is_learnt(base: Path, renderer: Renderer) -> None:
    net = policy.load(str(base), dtype="float32", device="cpu")
    row = demonstration_row(renderer, talk(0))
    # The last replies' tokens made context: what they are, as labels, is of no matter.
    row.mask[row.mask.nonzero()[0][-3:]] = False
    before = gradient(net, row)
    row.tokens[-3:] = 7
    after = gradient(net, row)
    assert all(torch.equal(before[name], after[name]) for name in before)
    row.mask[-1] = True
    assert any(not torch.equal(before[name], one) for name, one in gradient(net, row).items())


@pytest.mark.slow
def test_it_learns(base: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    record = train(stage(base), tmp_path / "out", lines.append)
    assert record["loss"] < 1
    assert record["tokens"] >= SMALL.tokens > record["tokens"] - SMALL.batch_tokens
    assert 0 < record["policy_tokens"] < record["tokens"] / 4
    assert json.loads((tmp_path / "out/sft.json").read_text()) == record
    assert os.listdir(tmp_path) == ["out"], "nothing else is left"
    assert "100%, step" in lines[-1], lines
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    own = Renderer(tokenizer, vocab_size=net.config.vocab_size)
    prompt = torch.tensor([own.prompt([Message("user", "b")])])
    said = net.generate(prompt, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :]
    assert own.decode(said.tolist()) == "bbb"


@pytest.mark.slow
def test_replicas_learn_the_same(base: Path, tmp_path: Path) -> None:
    for count in (1, 3):
        train(stage(base, replicas=count, tokens=3000), tmp_path / str(count), silent)
    one, three = (load_file(tmp_path / name / "model.safetensors") for name in "13")
    before = load_file(base / "model.safetensors")
    for name, weights in one.items():
        moved = (weights - before[name]).norm()
        assert (three[name] - weights).norm() <= 1e-3 * moved, name


def test_replicas_share_weights_and_add_their_gradients_up(base: Path, renderer: Renderer) -> None:
    rows = [demonstration_row(renderer, talk(index)) for index in range(9)]

    def backward(net: Any, batch: MicroBatch) -> float:
        return policy.backward(net, batch, 1.0, lambda logp, _: -logp.sum(), Clock())[0]

    found = []
    for count in (1, 2, 4):
        net = policy.load(str(base), dtype="float32", device="cpu")
        with Replicas(net, count) as replicas, torch.no_grad():
            net.get_input_embeddings().weight.mul_(1.5)  # in every one of them
            with torch.enable_grad():
                packed = replicas.pack(rows, 10_000)
                loss = sum(replicas.backward(packed, backward))
            assert len(packed) >= count
        found.append((loss, {name: one.grad for name, one in net.named_parameters()}))
    (expected, gradients), *others = found
    for loss, other in others:
        assert loss == pytest.approx(expected, rel=1e-5)
        for name, one in gradients.items():
            torch.testing.assert_close(other[name], one, rtol=1e-4, atol=1e-4)


def test_replicas_are_for_float32(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SftError, match="replicas are for float32 on a CPU: set replicas=1"):
        train(replace(stage(base, replicas=2), dtype="bfloat16"), tmp_path / "out", silent)


def interrupting(place: int) -> Callable[[int], Sequence[Message]]:
    """As `talk`; a signal arrives when the place is reached for the first time."""
    left = [signal.SIGTERM]

    def conversations(index: int) -> Sequence[Message]:
        if index == place and left:
            os.kill(os.getpid(), left.pop())
        return talk(index)

    return conversations


@pytest.mark.slow
def test_an_interrupted_stage_ends_where_an_unbroken_one_does(base: Path, tmp_path: Path) -> None:
    unbroken = train(stage(base), tmp_path / "unbroken", silent)
    broken = stage(base, interrupting(CHUNK + 3))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SftInterrupted, match=r"stopped and saved at step \d+, \d+% of the budget: the same command"):
        train(broken, tmp_path / "out", silent)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "out").exists()
    (saved,) = partial_of(tmp_path / "out").iterdir()
    AutoModelForCausalLM.from_pretrained(saved)
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja"}
    lines: list[str] = []
    record = train(broken, tmp_path / "out", lines.append)
    assert lines[0].startswith("going on from step ")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "out")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for key in ("steps", "tokens", "policy_tokens", "loss", "left_out"):
        assert record[key] == unbroken[key], key


@pytest.mark.slow
def test_a_stage_of_other_settings_does_not_go_on(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SftInterrupted):
        train(stage(base, interrupting(0)), tmp_path / "out", silent)
    with pytest.raises(SftError, match=r"out\.partial was begun with another model, data or settings: remove it"):
        train(stage(base, lr=0.02), tmp_path / "out", silent)
    train(stage(base, checkpoint_seconds=1000), tmp_path / "out", silent)


@pytest.mark.slow
def test_a_checkpoint_that_is_not_whole_is_passed_over(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SftInterrupted):
        train(stage(base, interrupting(CHUNK)), tmp_path / "out", silent)
    (saved,) = partial_of(tmp_path / "out").iterdir()
    (saved / "trainer/optimizer.safetensors").write_bytes(b"half")
    lines: list[str] = []
    assert train(stage(base), tmp_path / "out", lines.append)["tokens"] >= SMALL.tokens
    assert "passed over a checkpoint" in lines[0]


def test_a_warm_start_is_made_once(tmp_path: Path) -> None:
    shape, settings = InitModel.model_validate(TINY), SMALL.model_copy(update={"tokens": 1000})

    def untouched(index: int) -> Sequence[Message]:
        raise AssertionError("the cache was missed")

    made = warm_start(shape, talk, {"a": 1}, settings, tmp_path, silent)
    assert made.parent == tmp_path
    assert made.name.startswith("warm-")
    lines: list[str] = []
    again = warm_start(shape, untouched, {"a": 1}, settings.model_copy(update={"threads": 2}), tmp_path, lines.append)
    assert (again, lines) == (made, [f"the warm start is there already: {made}"])
    for changed in ({"seed": 1}, {"lr": 0.1}):
        with pytest.raises(AssertionError, match="missed"):
            warm_start(shape, untouched, {"a": 1}, settings.model_copy(update=changed), tmp_path, silent)
    with pytest.raises(AssertionError, match="missed"):
        warm_start(shape, untouched, {"a": 2}, settings, tmp_path, silent)
    (made / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(SftError, match=f"{made} exists"):
        warm_start(shape, untouched, {"a": 1}, settings, tmp_path, silent)


def test_who_makes_the_same_model_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.sft.stage._GRACE_SECONDS", 0.0)
    monkeypatch.setattr("rl.sft.stage._ASK_SECONDS", 0.01)
    settings, lines = SftConfig(seconds=0.05), list[str]()
    with (tmp_path / ".m.lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SftError, match=f"another process has been making {tmp_path / 'm'} for 0 s: end it"):
            warm_start(InitModel(), lambda _: (), {}, settings, tmp_path, lines.append, out=tmp_path / "m")
    assert lines == [f"another process makes {tmp_path / 'm'}: waiting for it, 0 s at most"]


def test_a_conversation_longer_than_the_context_is_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    def conversations(index: int) -> Sequence[Message]:
        return (Message("user", "x" * 600), *talk(index)[1:]) if index % 64 == 5 else talk(index)

    assert train(stage(base, conversations, tokens=1000), tmp_path / "of-model", silent)["left_out"] == CHUNK / 64
    with pytest.raises(NothingFits, match=f"{CHUNK} conversations in a row are longer than the context of 9 tokens"):
        train(stage(base, conversations, context=9), tmp_path / "out", silent)


def test_batches_are_filled_mixed_and_found_again(renderer: Renderer) -> None:
    def blocks(index: int) -> Sequence[Message]:
        return (Message("user", "abcd"[index * 4 // CHUNK % 4]), Message("assistant", "."))

    def some(start: Cursor, seed: int = 0) -> list[Any]:
        stream = batches(blocks, renderer, start, context=99, tokens=600, seed=seed)
        return [next(stream) for _ in range(30)]

    found = some(Cursor())
    letters = [[tuple(row.tokens) for row in batch.rows] for batch in found]
    assert all(len(set(kinds)) > 1 for kinds in letters[:-1])
    assert all(sum(map(len, one)) <= 600 for one in letters)
    assert found[0].after.chunk < found[-1].after.chunk
    for place in (3, 20):
        rest = some(found[place].after)[: 29 - place]
        assert [[tuple(row.tokens) for row in batch.rows] for batch in rest] == letters[place + 1 :]
    assert [[tuple(row.tokens) for row in batch.rows] for batch in some(Cursor(), seed=1)] != letters


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("muon_lr", [0.02, None])
def test_other_models_learn_too(base: Path, tmp_path: Path, tied: bool, dtype: str, muon_lr: float | None) -> None:
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=288, tie_word_embeddings=tied, **shape)).save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "llama")
    settings = SMALL.model_copy(update={"tokens": 6000, "muon_lr": muon_lr})
    record = train(Stage(str(tmp_path / "llama"), talk, {}, settings, dtype), tmp_path / "out", silent)
    assert record["loss"] < 5.5
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert str(trained.dtype) == f"torch.{dtype}"
    assert (trained.lm_head.weight is trained.model.embed_tokens.weight) == tied


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(base: Path, tmp_path: Path) -> None:
    one, many = (
        train(stage(base, tokens=3000, microbatch_tokens=size), tmp_path / f"{size}", silent) for size in (8192, 64)
    )
    assert one["loss"] == pytest.approx(many["loss"], rel=1e-3)
    assert one["digest"] == many["digest"]


def test_a_loss_that_is_not_finite_ends_it(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SftFailed, match=r"at step \d+ the loss is .*: lower the learning rates"):
        train(stage(base, lr=1e30, muon_lr=None, warmup=0.0, decay=0.0), tmp_path / "out", silent)


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (32, 32)])
def test_muon_moves_as_torchs_own_does(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, target = torch.randn(size), torch.randn(size)
    ends = []
    for kind in (Muon, torch.optim.Muon):
        matrices = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.T.clone())]
        optimiser = kind(matrices, lr=0.1, weight_decay=0.2)
        for _ in range(5):
            optimiser.zero_grad()
            (((matrices[0] - target) ** 2).sum() + ((matrices[1] - target.T) ** 2).sum()).backward()
            optimiser.step()
        ends.append(torch.cat([(one - one.new_tensor(0)).flatten() for one in matrices]).detach())
    moved = ends[1] - torch.cat([start.flatten(), start.T.flatten()])
    assert (ends[0] - ends[1]).norm() < 0.02 * moved.norm()  # torch's own works in bfloat16


def test_muons_updates_are_near_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 20, 60)))
    assert 0.5 < values.min() <= values.max() < 1.3
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)


@pytest.mark.slow
def test_the_budget_is_tokens_or_seconds(base: Path, tmp_path: Path) -> None:
    both = SftConfig(tokens=100, seconds=10)
    assert (both.used(50, 1), both.used(50, 6), both.used(50, 10)) == (0.5, 0.6, 1.0)
    assert SftConfig(tokens=100).used(50, 1e9) == 0.5
    record = train(stage(base, tokens=10**9, seconds=2.0), tmp_path / "out", silent)
    assert 2 <= record["seconds"] < 20
    assert record["tokens"] < 10**9


def test_the_rates_are_a_trapezoid() -> None:
    settings = SftConfig(warmup=0.1, decay=0.4)
    shares = (0.0, 0.05, 0.1, 0.6, 0.8, 1.0, 1.1)
    assert [settings.rate(share) for share in shares] == pytest.approx([0, 0.5, 1, 1, 0.5, 0, 0])
    assert SftConfig(warmup=0, decay=0).rate(0) == 1
    with pytest.raises(ValueError, match="together are more than the budget"):
        SftConfig(warmup=0.5, decay=0.6)


def written(path: Path, *talks: Sequence[Message]) -> Path:
    rows = [{"messages": [{"role": one.role, "content": one.content} for one in talk]} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_conversations(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "talks.jsonl", *map(talk, range(40)))
    settings = ["--set", "tokens=3000", "--set", "batch_tokens=600", "--set", "threads=1"]
    arguments = ["sft", "--model", base, "--data", data, "--out", tmp_path / "out", *settings]
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out
    assert f"{tmp_path / 'out'}: " in out
    assert Shuffled(list(read(data)), 0)(41) == from_file(str(base), data, SMALL).conversations(41)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--out": "taken"}, "taken exists: choose another path, or remove it"),
        ({"--model": "./nothing"}, "there is no model at ./nothing"),
        ({"--model": "misfit"}, "take the tokenizer that was saved with the model"),
        ({"--model": "empty"}, "the model at empty does not load"),
        ({"--data": "bad.jsonl"}, "bad.jsonl, line 1, column 'messages': message 1 has the unknown role 'bot'"),
        ({"--data": "nothing.jsonl"}, "nothing.jsonl: cannot be read"),
        ({"--out": "talks.jsonl/out"}, "cannot be made"),
        ({"--set": "tokns=3"}, "there is no key 'tokns': did you mean 'tokens'?"),
        ({"--set": "device=cuda"}, "there is no GPU for device 'cuda' here"),
        ({"--column": "mesages=x"}, "there is no field 'mesages' to map"),
        ({"--out": None}, "sft takes a configuration, or --model, --data and --out"),
    ],
)
def test_bad_input_is_a_sentence(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str | None],
    words: str,
) -> None:
    if changes.get("--set") == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    written(tmp_path / "talks.jsonl", talk(1))
    written(tmp_path / "bad.jsonl", (Message("bot", "x"), *talk(1)))
    misfit, empty = (tiny_model(tmp_path / name) for name in ("misfit", "empty"))
    stored = json.loads((misfit / "config.json").read_text())
    (misfit / "config.json").write_text(json.dumps(stored | {"vocab_size": 100}))
    (empty / "model.safetensors").unlink()
    before = sorted(os.listdir(tmp_path))
    given = {"--model": str(base), "--data": "talks.jsonl", "--out": "out"} | changes
    with pytest.raises(SystemExit) as ended:
        main(["sft", *(word for key, value in given.items() if value is not None for word in (key, value))])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == before, "nothing is made for a stage that cannot start"
