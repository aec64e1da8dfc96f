"""Weights as files: in an order that engines can use as it lies, and published without a copy that could tear."""

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from rl.learner import weights
from rollout_workers.mapped import joined, mapped, mapped_shared
from rollout_workers.scratch import SHARED_MEMORY


def state() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    shapes = {
        "embed.weight": (10, 8),
        "layers.0.self_attn.q_proj.weight": (8, 8),
        "layers.0.self_attn.q_proj.bias": (8,),
        "layers.0.self_attn.k_proj.weight": (4, 8),
        "layers.0.self_attn.k_proj.bias": (4,),
        "layers.0.self_attn.o_proj.weight": (8, 8),
        "layers.0.sinks": (3,),
    }
    found = {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    return {"odd": torch.arange(3).bfloat16(), **found, "steps": torch.tensor(7)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=["shared memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as path:
            yield Path(path)


def test_every_reader_of_the_format_reads_them(tmp_path: Path) -> None:
    weights.write(state(), tmp_path / "w")
    for found in (load_file(tmp_path / "w"), mapped(tmp_path / "w"), load(weights.pack(state()).tobytes())):
        assert same(found, state())
        assert all(found[name].dtype == tensor.dtype for name, tensor in state().items())


def test_what_an_engine_fuses_lies_side_by_side(tmp_path: Path) -> None:
    weights.write(state(), tmp_path / "w")
    found = mapped(tmp_path / "w")
    for leaf in ("weight", "bias"):
        parts = [found[f"layers.0.self_attn.{part}_proj.{leaf}"] for part in "qk"]
        whole = joined(parts)
        assert torch.equal(whole, torch.cat(parts))
        assert whole.data_ptr() == parts[0].data_ptr(), "it is where the parts are"
        assert torch.equal(joined(parts[::-1]), torch.cat(parts[::-1])), "the other way round they are no neighbours"


def test_what_is_published_stays_though_the_weights_go_on(folder: Path) -> None:
    one = state()
    outbox = weights.Outbox(one)
    seen = []
    for version in range(4):
        file = folder / f"{version}.safetensors"
        outbox.publish(file)
        seen.append((mapped(file), load_file(file), {name: tensor.clone() for name, tensor in one.items()}))
        outbox.release()
        for tensor in one.values():
            tensor.add_(1)
    for engine, again, then in seen:
        assert same(engine, then)
        assert same(again, then)


def test_publishing_out_of_shared_memory_copies_nothing() -> None:
    one = state()
    outbox = weights.Outbox(one)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as name:
        folder = Path(name)
        outbox.publish(folder / "0")
        outbox.release()
        (lying,) = set(folder.iterdir()) - {folder / "0"}
        inode = lying.stat().st_ino
        one["embed.weight"] += 1
        outbox.publish(folder / "1")
        assert (folder / "1").stat().st_ino == inode
        assert same(mapped(folder / "1"), one)
        assert {path.name for path in folder.iterdir()} == {"0", "1"}
        outbox.publish(folder / "2")  # the same again, unchanged
        assert same(mapped(folder / "2"), one)


def test_tied_tensors_stay_tied(folder: Path) -> None:
    one = state()
    one["head.weight"] = one["embed.weight"].detach()  # another tensor in the same place
    outbox = weights.Outbox(one)
    for version in range(2):
        outbox.publish(folder / str(version))
        outbox.release()
        one["embed.weight"] += 1
    assert torch.equal(one["head.weight"], one["embed.weight"])
    assert not torch.equal(mapped(folder / "0")["embed.weight"], mapped(folder / "1")["embed.weight"])


def test_two_learners_in_one_place_keep_apart() -> None:
    one, two = state(), {name: tensor + 1 for name, tensor in state().items()}
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        for number, tensors in enumerate((one, two)):
            outbox = weights.Outbox(tensors)
            outbox.publish(Path(folder) / str(number))
            outbox.release()
        assert same(one, state())
        assert same(two, {name: tensor + 1 for name, tensor in state().items()})


def test_tensors_without_dimensions_or_elements_go_through_a_file(tmp_path: Path) -> None:
    odd = {"a": torch.tensor(2.5), "b": torch.empty(0, 3), "c": torch.arange(6.0).view(2, 3).t()}
    weights.write(odd, tmp_path / "w")
    for found in (mapped(tmp_path / "w"), mapped_shared(tmp_path / "w"), load_file(tmp_path / "w")):
        assert same(found, odd)
        assert all(torch.equal(joined([tensor]), tensor) for tensor in found.values())


def test_a_file_whose_data_are_not_aligned_is_read(tmp_path: Path) -> None:
    weights.write(state(), tmp_path / "w")
    whole = (tmp_path / "w").read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    (tmp_path / "w").write_bytes((end - 7).to_bytes(8, "little") + whole[8:end] + b" " + whole[end:])
    assert same(mapped(tmp_path / "w"), state())


def test_without_room_the_weights_go_on_and_the_version_stays() -> None:
    one = state()
    outbox = weights.Outbox(one)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        file = Path(folder) / "0"
        outbox.publish(file)
        outbox.release()
        outbox.publish(file.with_name("1"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
        try:
            outbox.release()
            one["embed.weight"] += 1
            with pytest.raises(OSError, match="File too large"):
                outbox.publish(file.with_name("2"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name for path in Path(folder).iterdir()} == {"0", "1"}
        assert same(mapped(file.with_name("1")), state())
        outbox.publish(file.with_name("2"))
        assert same(mapped(file.with_name("2")), one)
