"""Weight files are taken whole or not at all."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rollout_workers.weights import WeightsError, WeightsRef, check

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5)}, path, metadata={"format": "pt"})
    return path.read_bytes()


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        check(WeightsRef(7, str(path)))
    assert "version 7" in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def with_header(directory: Path, header: bytes) -> Path:
    """A file of that header alone."""
    path = directory / "w"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_a_whole_file_is_accepted(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "w"
    path.write_bytes(whole)
    check(WeightsRef(7, str(path)))


@in_one_folder
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
def test_a_truncated_file_is_refused(tmp_path: Path, whole: bytes, share: float) -> None:
    path = tmp_path / "w"
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_a_file_cut_in_its_first_bytes_is_refused(tmp_path: Path, whole: bytes, size: int) -> None:
    path = tmp_path / "w"
    path.write_bytes(whole[:size])
    refused(path)


@in_one_folder
@given(tail=st.binary(min_size=1, max_size=20))
def test_an_overlong_file_is_refused(tmp_path: Path, whole: bytes, tail: bytes) -> None:
    path = tmp_path / "w"
    path.write_bytes(whole + tail)
    assert "not whole" in refused(path)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "nothing")
    assert "cannot be read" in refused(tmp_path)


@in_one_folder
@given(data=st.binary(max_size=100))
def test_noise_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w"
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("header", [b"{}", b"[]", b"null", b"{", b"\xff\xfe", b'{"__metadata__": {}}'])
def test_a_header_of_nothing_is_refused(tmp_path: Path, header: bytes) -> None:
    refused(with_header(tmp_path, header))


def test_a_header_of_something_else_is_refused(tmp_path: Path) -> None:
    refused(with_header(tmp_path, b"[" * 10_000))
    for header in (
        1,
        [1],
        {"a": 1},
        {"a": {}},
        *({"a": {"data_offsets": bad}} for bad in ([], 3, [0, "x"], [0, None])),
    ):
        refused(with_header(tmp_path, json.dumps(header).encode()))


def test_a_header_that_claims_more_than_there_is_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(path)
    refused(with_header(tmp_path, json.dumps({"a": {"data_offsets": [0, 2**62]}}).encode()))
