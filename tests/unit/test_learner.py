"""The learner with a real tiny model: what a step does, what it must not do, and that nothing is lost between two."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import tiny_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from rl.config import AlgorithmConfig, LearnerConfig
from rl.learner import model, weights
from rl.learner.learner import Learner, LearnerSetup, StepRefused
from rl.learner.packing import Row, balanced_shares, pack, row
from rollout_workers.clock import Clock
from rollout_workers.scratch import SHARED_MEMORY
from rollout_workers.trajectory import Completion, Context, Trajectory
from verifiers.errors import UserError

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def learner(path: Path) -> Callable[..., Learner]:
    """Makes learners on the tiny model, or on a checkpoint; further arguments: `dtype`, settings."""

    def make(model: Path = path, **config: Any) -> Learner:
        dtype = config.pop("dtype", "float32")
        algorithm = {key: config.pop(key) for key in config.keys() & AlgorithmConfig.model_fields.keys()}
        settings = LearnerConfig.model_validate({"lr": 1e-3, "microbatch_tokens": 4096} | config)
        objective = AlgorithmConfig.model_validate({"norm": 64} | algorithm)
        return Learner(LearnerSetup(str(model), model != path, dtype, 1.0, settings, objective))

    return make


@pytest.fixture
def weights_of(tmp_path: Path) -> Callable[[Learner], Weights]:
    def read(learner: Learner) -> Weights:
        learner.write_weights(str(tmp_path / "w.safetensors"))
        return load_file(tmp_path / "w.safetensors")

    return read


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def on_policy(learner_path: Path, tokens: list[int], prompt: int, advantage: float, tail: tuple[int, ...] = ()) -> Row:
    """A row as the policy at `learner_path` would have sampled it, `tail` being context behind it."""
    rest = tuple(tokens[1:])
    plain = row(Trajectory((Context(tuple(tokens[:1])), Completion(rest, (0.0,) * len(rest), 0))), 0.0)
    policy = model.load(str(learner_path), dtype="float32", device="cpu")
    with torch.no_grad():
        logp = model.forward(policy, *pack([plain], 1), 1.0).logp.tolist()
    parts = (Context(tuple(tokens[:prompt])), Completion(tuple(tokens[prompt:]), tuple(logp[prompt:]), 0))
    return row(Trajectory((*parts, Context(tail)) if tail else parts), advantage)


def batch(path: Path, count: int = 7, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    return [
        on_policy(path, random.integers(0, 270, size).tolist(), size // 3 + 1, advantage)
        for size, advantage in zip(random.integers(4, 40, count), random.normal(size=count), strict=True)
    ]


def test_the_gradient_is_the_same_however_rows_are_cut(path: Path, learner: Any, weights_of: Any) -> None:
    """With an epsilon that dwarfs the gradient, AdamW's first step is lr/eps times it: gradients are compared."""
    rows = batch(path)
    found = {}
    for tokens in (64, 96, 4096):
        one = learner(microbatch_tokens=tokens, lr=1e3, eps=1e3, max_grad_norm=1e9)
        before = weights_of(one)
        stats = one.step(rows)
        found[tokens] = (stats["microbatches"], {name: new - before[name] for name, new in weights_of(one).items()})
    (most, small), (_, middle), (least, whole) = found.values()
    assert most > least == 1
    for name, step in whole.items():
        scale = step.abs().max()
        assert scale > 0
        for other in (small[name], middle[name]):
            assert (other - step).abs().max() <= 1e-5 * scale + 1e-7, name


@pytest.mark.parametrize("elements", [1, 288 * 5, 288 * 1000])
def test_the_gradient_is_the_same_however_the_head_is_cut(path: Path, elements: int) -> None:
    """Against a plain loop over rows with the model's own attention and head, in float64."""
    rows = batch(path)

    def loss(logp: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return (logp * weights_of[places]).sum()

    one = model.load(str(path), dtype="float32", device="cpu")
    (packed,) = pack(rows, 4096)
    weights_of = torch.from_numpy(packed.advantages)
    value, found = model.backward(one, packed, 0.7, loss, Clock(), head_elements=elements)

    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    total, start = torch.zeros((), dtype=torch.float64), 0
    for length in packed.row_lengths:
        part = slice(start, start := start + length)
        tokens, mask = torch.from_numpy(packed.tokens[part]), torch.from_numpy(packed.mask[part])
        scores = torch.log_softmax(plain(input_ids=tokens[None]).logits[0, :-1] / 0.7, -1)
        logp = scores.gather(-1, tokens[1:, None]).squeeze(-1)
        torch.testing.assert_close(found.logp[part][mask].double(), logp[mask[1:]], atol=1e-5, rtol=1e-5)
        total = total + (logp * weights_of[part][1:] * mask[1:]).sum()
    total.backward()
    assert value == pytest.approx(total.item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        mine = dict(one.named_parameters())[name].grad.double()
        assert (mine - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 0.5),  # of the tokens that became likelier by e, good ones have no gradient left
        ({"correction": "decoupled"}, 0.0),
        ({"correction": "tis"}, 0.0),
        ({"correction": "icepop", "correction_cap": 2.0}, 0.5),
        ({"loss": "cispo"}, 0.0),
    ],
)
def test_what_is_told_as_clipped_has_no_gradient(path: Path, options: dict[str, Any], share: float) -> None:
    fair = on_policy(path, list(range(3, 24)), 1, 1.0)
    half = fair.logprobs - np.where(fair.mask, np.arange(len(fair.mask)) % 2, 0).astype(np.float32)
    settings = LearnerConfig.model_validate({"lr": 1e-3, "microbatch_tokens": 4096})
    algorithm = AlgorithmConfig.model_validate({"norm": 64} | options)
    one = Learner(LearnerSetup(str(path), False, "float32", 1.0, settings, algorithm))
    assert one.step([replace(fair, logprobs=half)])["clip_fraction"] == share


def test_computing_activations_again_changes_nothing(path: Path, learner: Any, weights_of: Any) -> None:
    found = []
    for again in (False, True):
        one = learner(activation_checkpointing=again)
        assert one._model.is_gradient_checkpointing is again
        one.step(batch(path))
        found.append(weights_of(one))
    assert same(*found)


@pytest.mark.slow
def test_small_steps_are_not_lost_in_bfloat16(path: Path, learner: Any, weights_of: Any) -> None:
    """A step of 1e-5 is far below what a bfloat16 of 0.05 can tell; 40 of them are not."""
    one, exact = (learner(dtype=dtype, lr=1e-5) for dtype in ("bfloat16", "float32"))
    before = weights_of(one)
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    rows = batch(path)
    for _ in range(40):
        one.step(rows)
        exact.step(rows)
    after, meant = weights_of(one), weights_of(exact)
    moved = sum(int((after[name] != before[name]).sum()) for name in before)
    assert moved > 0.01 * sum(tensor.numel() for tensor in before.values())
    for name, tensor in after.items():
        assert (tensor.float() - meant[name]).abs().max() <= 4e-4 + meant[name].abs().max() / 128, name


@pytest.mark.slow
def test_a_bfloat16_checkpoint_goes_on_exactly(path: Path, learner: Any, weights_of: Any, tmp_path: Path) -> None:
    whole = learner(dtype="bfloat16", lr=1e-6)
    whole.step(batch(path))
    whole.save(str(tmp_path / "step-1"), 1)
    again = learner(tmp_path / "step-1", dtype="bfloat16", lr=1e-6)
    for seed in range(3):
        assert whole.step(batch(path, seed=seed)) == again.step(batch(path, seed=seed))
    assert same(weights_of(whole), weights_of(again))
    whole.save(str(tmp_path / "one"), 4)
    again.save(str(tmp_path / "two"), 4)
    assert same(*(load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")))


@gpu
def test_a_gpu_steps_as_a_cpu_does(path: Path, learner: Any, weights_of: Any) -> None:
    here, there = learner(eps=1e-4), learner(eps=1e-4, device="cuda")
    for seed in range(3):
        mine, others = here.step(batch(path, seed=seed)), there.step(batch(path, seed=seed))
        assert others == pytest.approx(mine, rel=1e-3, abs=1e-4)
    after = weights_of(there)
    assert all((after[name] - tensor).abs().max() < 1e-4 for name, tensor in weights_of(here).items())


def test_a_head_that_is_no_plain_matrix_is_refused(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 300}
    for caps, said in (((1.0, None), "more to its logits"), ((None, 50.0), "attention has softcap")):
        config = Gemma2Config(**heads, **sizes, final_logit_softcapping=caps[0], attn_logit_softcapping=caps[1])
        Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
        with pytest.raises(ValueError, match=rf"{said}.*cannot be trained here"):
            model.load(str(tmp_path / "capped"), dtype="float32", device="cpu")


def test_nothing_is_dropped_out(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=300, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    loaded = model.load(str(tmp_path / "gpt2"), dtype="float32", device="cpu")
    options = {"input_ids": torch.arange(8)[None], "position_ids": torch.arange(8)[None], "row_lengths": (8,)}
    assert loaded.training
    assert torch.equal(loaded(**options).logits, loaded(**options).logits)


def test_the_order_of_rows_does_not_matter(path: Path, learner: Any) -> None:
    rows = batch(path)
    norms = [learner().step(order)["grad_norm"] for order in (rows, rows[::-1])]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_context_gets_no_gradient(path: Path, learner: Any, weights_of: Any) -> None:
    tokens = list(range(40, 60))
    without, behind = learner(), learner()
    first = without.step([on_policy(path, tokens, 8, 1.0)])
    second = behind.step([on_policy(path, tokens, 8, 1.0, tail=tuple(range(100, 130)))])
    assert first["grad_norm"] > 0
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)

    untouched = learner()
    before = weights_of(untouched)
    stats = untouched.step([row(Trajectory((Context(tuple(tokens)),)), 1.0)])
    assert (stats["grad_norm"], stats["loss"]) == (0, 0)
    assert same(weights_of(untouched), before)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_step_moves_probability_towards_what_was_good(path: Path, learner: Any, advantage: float) -> None:
    rows = [on_policy(path, list(range(40, 60)), 8, advantage)]
    one = learner()
    before, after = one.step(rows), one.step(rows)
    assert before["kl_k1"] == pytest.approx(0, abs=1e-6)  # on policy: the ratio is 1 everywhere
    assert before["loss"] == pytest.approx(-advantage * 12 / 64, rel=1e-5)
    assert -after["kl_k1"] * advantage > 1e-3  # the mean of log ρ, over the sampled tokens


def test_good_rises_and_bad_falls_in_one_batch(path: Path, learner: Any, tmp_path: Path) -> None:
    good, bad = on_policy(path, list(range(40, 60)), 8, 1.0), on_policy(path, list(range(80, 100)), 8, -1.0)
    one = learner()
    one.step([good, bad])
    one.write_weights(str(tmp_path / "w"))
    policy = model.load(str(path), dtype="float32", device="cpu")
    weights.read(policy, tmp_path / "w")
    for each, sign in ((good, 1), (bad, -1)):
        with torch.no_grad():
            logp = model.forward(policy, *pack([each], 1), 1.0).logp.numpy()
        assert sign * (logp - each.logprobs)[each.mask].mean() > 0


def test_a_step_says_what_it_did(path: Path, learner: Any) -> None:
    rows = batch(path)
    stats = learner().step(rows)
    assert stats["rows"] == 7
    assert stats["tokens"] == sum(int(one.mask.sum()) for one in rows)
    assert stats["packed_tokens"] == sum(len(one.tokens) for one in rows)
    assert 0 < stats["entropy"] <= math.log(288)
    assert stats["gap_max"] < 1e-5
    assert all(math.isfinite(value) for value in stats.values())


def far_off(advantage: float, logprob: float = -5.0) -> Row:
    return row(Trajectory((Context((1, 2)), Completion((3,), (logprob,), 0))), advantage)


@pytest.mark.parametrize("bad", [far_off(1e38), far_off(-1.0, -200.0)], ids=["gradient", "loss"])
def test_what_comes_out_not_finite_is_refused(path: Path, learner: Any, weights_of: Any, bad: Row) -> None:
    good, poisoned, clean = batch(path), learner(), learner()
    before = weights_of(poisoned)
    with pytest.raises(StepRefused, match=r"inf .*the step was not taken"):
        poisoned.step([*good, bad])
    assert same(weights_of(poisoned), before)
    poisoned.step(good)  # nothing of the refused step is left in the gradient or in AdamW's moments
    clean.step(good)
    assert same(weights_of(poisoned), weights_of(clean))


def test_a_step_on_nothing_is_refused(learner: Any) -> None:
    with pytest.raises(StepRefused, match="empty batch"):
        learner().step([])


def test_minibatches_are_steps_one_after_the_other(path: Path, learner: Any, weights_of: Any) -> None:
    rows = batch(path)
    several, each = learner(minibatches=3), learner()
    stats = several.step(rows)
    found = [each.step(share) for share in balanced_shares(rows, 3)]
    assert same(weights_of(several), weights_of(each))
    assert stats["loss"] == pytest.approx(sum(one["loss"] for one in found), rel=1e-9)
    assert stats["grad_norm"] == max(one["grad_norm"] for one in found)
    assert (stats["rows"], stats["microbatches"]) == (7, 3)
    alone = learner(minibatches=5).step(rows[:2])  # more than there are rows
    assert (alone["rows"], alone["microbatches"]) == (2, 2)


def test_a_correction_clips_against_the_learner_before_all_minibatches(
    path: Path, learner: Any, weights_of: Any
) -> None:
    """Of what that very learner sampled, decoupled and plain clipping are one: w is 1, and u is ρ."""
    rows = batch(path)
    large = {"minibatches": 2, "lr": 3e-2}
    plain, decoupled = learner(**large), learner(correction="decoupled", **large)
    anew = learner(correction="decoupled", lr=3e-2)
    clipped = [one.step(rows)["clip_fraction"] for one in (plain, decoupled)]
    for share in balanced_shares(rows, 2):
        assert anew.step(share)["clip_fraction"] == 0  # against itself
    assert clipped[0] == clipped[1] > 0
    found = [weights_of(one) for one in (plain, decoupled, anew)]
    apart = [max((found[1][name] - other[name]).abs().max().item() for name in other) for other in (found[0], found[2])]
    assert apart[0] < 1e-3 < apart[1]


@pytest.mark.parametrize("settings", [{}, {"muon_lr": 1e-3}, {"dtype": "bfloat16"}], ids=str)
def test_a_minibatch_that_is_refused_takes_the_others_back(
    path: Path, learner: Any, weights_of: Any, settings: dict[str, Any]
) -> None:
    good, bad = batch(path), far_off(1e38)  # the shortest one: in the last of seven
    for earlier in (0, 1):  # at the first step there are no moments yet
        broken, clean = learner(minibatches=8, **settings), learner(minibatches=8, **settings)
        for one in (broken, clean):
            for _ in range(earlier):
                one.step(good)
        before = weights_of(broken)
        with pytest.raises(StepRefused, match="on 1 rows"):
            broken.step([*good, bad])
        assert same(weights_of(broken), before)
        for one in (broken, clean):
            one.step(good)
        assert same(weights_of(broken), weights_of(clean))


@pytest.mark.parametrize(
    "options",
    [
        *({"loss": loss} for loss in ("clip", "gspo", "cispo", "dppo_tv")),
        *({"correction": correction} for correction in ("tis", "icepop", "mis", "decoupled")),
    ],
    ids=str,
)
def test_what_comes_in_not_finite_is_refused(
    path: Path, learner: Any, weights_of: Any, options: dict[str, str]
) -> None:
    """Not all of them would come out so: some objectives mask such a token, or cap its weight."""
    one, good = learner(**options), batch(path)
    before = weights_of(one)
    for value in (math.inf, -math.inf, math.nan):
        for bad in (far_off(1.0, value), far_off(-1.0, value), far_off(value)):
            with pytest.raises(StepRefused, match="not finite: the step was not taken"):
                one.step([*good, bad])
    assert same(weights_of(one), before)


def test_engine_and_learner_are_compared_before_the_first_step_of_a_batch(path: Path, learner: Any) -> None:
    stats = learner(minibatches=3, lr=3e-2).step(batch(path))
    assert stats["gap_max"] < 1e-5
    assert stats["clip_fraction"] > 0


def test_the_gradient_is_clipped_and_logged_unclipped(path: Path, learner: Any, weights_of: Any) -> None:
    rows = batch(path)
    free, held = (learner(lr=1e3, eps=1e3, max_grad_norm=norm) for norm in (1e9, 1e-3))
    start = weights_of(free)
    norms = [one.step(rows)["grad_norm"] for one in (free, held)]
    assert norms[0] == norms[1] > 1e-3
    moved = [
        math.sqrt(sum((new - start[name]).square().sum().item() for name, new in weights_of(one).items()))
        for one in (free, held)
    ]
    assert moved[1] == pytest.approx(1e-3, rel=0.01)
    assert moved[0] == pytest.approx(norms[0], rel=0.01)


def test_muon_steps_the_hidden_matrices_and_adamw_the_rest(path: Path, learner: Any, weights_of: Any) -> None:
    rows, found = batch(path), {}
    for muon_lr in (None, 0.0, 1e-2):
        one = learner(muon_lr=muon_lr)
        before = weights_of(one)
        one.step(rows)
        found[muon_lr] = {name: after - before[name] for name, after in weights_of(one).items()}
    assert same(found[None], found[0.0])
    for name, step in found[1e-2].items():
        if step.ndim == 1 or "embed" in name:
            assert torch.allclose(step, found[None][name], rtol=0, atol=1e-7), name  # of 1e-3; not every CPU to the bit
        else:
            singular = torch.linalg.svdvals(step) / (1e-2 * max(1, step.shape[0] / step.shape[1]) ** 0.5)
            assert 0.5 < singular.median() < 1.3, name


@pytest.mark.parametrize("muon_lr", [None, 1e-2])
def test_weights_have_rates_by_their_names(path: Path, learner: Any, weights_of: Any, muon_lr: float | None) -> None:
    rows, steps = batch(path), []
    for lr_scale in ({}, {"embed": 2.0, "layers.0.mlp": 3.0, "mlp": 0.0}):
        one = learner(lr=1e-4, muon_lr=muon_lr, lr_scale=lr_scale)
        before = weights_of(one)
        one.step(rows)
        steps.append({name: after - before[name] for name, after in weights_of(one).items()})
    for name, step in steps[0].items():
        factor = 2.0 if "embed" in name else 3.0 if "layers.0.mlp" in name else 0.0 if "mlp" in name else 1.0
        torch.testing.assert_close(steps[1][name], factor * step, atol=1e-7, rtol=1e-3)


def test_a_rate_for_no_weight_is_told(learner: Any) -> None:
    with pytest.raises(UserError, match="no weight's name contains 'embedding'; they are such as model"):
        learner(lr_scale={"embedding": 2.0})


@pytest.mark.slow
@pytest.mark.parametrize("muon_lr", [None, 1e-2])
def test_a_checkpoint_goes_on_exactly(
    path: Path, learner: Any, weights_of: Any, tmp_path: Path, muon_lr: float | None
) -> None:
    batches = [batch(path, seed=seed) for seed in range(4)]
    whole = learner(weight_decay=0.1, muon_lr=muon_lr)
    for rows in batches[:2]:
        whole.step(rows)
    whole.save(str(tmp_path / "step-2"), 2)
    other = learner(tmp_path / "step-2", muon_lr=None if muon_lr else 1e-2)  # its own state begins anew
    other.step(batches[2])
    again = learner(tmp_path / "step-2", weight_decay=0.1, muon_lr=muon_lr)
    assert same(weights_of(again), weights_of(whole))
    for rows in batches[2:]:
        assert whole.step(rows) == again.step(rows)
        assert same(weights_of(whole), weights_of(again))


def test_weights_go_through_a_file(path: Path, learner: Any, tmp_path: Path) -> None:
    one = learner()
    one.step(batch(path))
    one.write_weights(str(tmp_path / "w"))
    assert "lm_head.weight" not in load_file(tmp_path / "w"), "a head tied to the embedding is not sent twice"
    other = model.load(str(tiny_model(tmp_path / "other", seed=8)), dtype="float32", device="cpu")
    weights.read(other, tmp_path / "w")
    again = tmp_path / "again"
    weights.write(weights.parameters(other), again)
    assert same(load_file(again), load_file(tmp_path / "w"))
    assert other.lm_head.weight is other.model.embed_tokens.weight


@pytest.mark.parametrize(("dtype", "muon_lr"), [("float32", 1e-2), ("bfloat16", None)])
def test_it_learns_the_same_where_its_weights_are_published_as_they_lie(
    path: Path, learner: Any, tmp_path: Path, dtype: str, muon_lr: float | None
) -> None:
    copying, lying = (learner(dtype=dtype, muon_lr=muon_lr) for _ in range(2))
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as name:
        files = [(tmp_path / str(version), Path(name) / str(version)) for version in range(3)]
        for seed, (one, other) in enumerate(files):
            copying.write_weights(str(one))
            lying.write_weights(str(other))
            assert copying.step(batch(path, seed=seed)) == lying.step(batch(path, seed=seed))
        assert all(one.read_bytes() == other.read_bytes() for one, other in files), "later steps left them alone"
        for each, folder in ((copying, tmp_path / "a"), (lying, tmp_path / "b")):
            each.save(str(folder), 3)
        assert same(*(load_file(tmp_path / folder / "model.safetensors") for folder in "ab"))
        rows = {0: [on_policy(path, list(range(40, 60)), 8, 1.0)]}
        assert copying.gaps(rows, str(files[0][0])) == lying.gaps(rows, str(files[0][1]))
        assert files[0][0].read_bytes() == files[0][1].read_bytes()
        assert lying.policy.lm_head.weight is lying.policy.model.embed_tokens.weight


def test_an_untied_head_goes_through_a_file(path: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(path)
    config.tie_word_embeddings = False
    for name in ("one", "two"):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    one, two = (model.load(str(tmp_path / name), dtype="float32", device="cpu") for name in ("one", "two"))
    assert not torch.equal(one.lm_head.weight, two.lm_head.weight)
    weights.write(weights.parameters(one), tmp_path / "w")
    weights.read(two, tmp_path / "w")
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_weights_of_another_shape_are_refused(path: Path, tmp_path: Path) -> None:
    other = model.load(str(tiny_model(tmp_path / "other", layers=2)), dtype="float32", device="cpu")
    weights.write(weights.parameters(other), tmp_path / "w")
    with pytest.raises(RuntimeError, match="Missing key"):
        weights.read(model.load(str(path), dtype="float32", device="cpu"), tmp_path / "w")


def test_gaps_are_of_the_tokens_of_a_version(path: Path, learner: Any, tmp_path: Path) -> None:
    one = learner()
    files = {0: str(tmp_path / "0"), 1: str(tmp_path / "1")}
    one.write_weights(files[0])
    row_of_0 = on_policy(path, list(range(40, 60)), 8, 1.0)
    one.step([row_of_0])
    one.write_weights(files[1])
    found = one.gaps({0: [row_of_0], 1: [row_of_0]}, *files.values())
    assert found[0][1] == 12
    assert found[0][0] < 1e-5
    assert found[1] == (0.0, 0)  # none of its tokens is of version 1
    unknown = replace(row_of_0, logprobs=np.full_like(row_of_0.logprobs, np.nan))
    assert math.isnan(one.gaps({0: [unknown, row_of_0]}, files[0])[0][0]), "no comparison is no agreement"
