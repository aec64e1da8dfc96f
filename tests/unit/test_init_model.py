"""A model from nothing: an ordinary Hugging Face directory, the same for the same seed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TINY, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl.init_model import SPECIAL_TOKENS, InitModel, InitModelError, build_tokenizer, digest, init_model

CORPUS = "What is 7 + 5?\nWrite a Python function.\n" * 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With merges learnt from a corpus."""
    corpus = tmp_path_factory.mktemp("corpus") / "text"
    corpus.write_text(CORPUS)
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", corpus=(str(corpus),), vocab_size=320)


@pytest.fixture(scope="module")
def tokenizer(made: Path) -> Any:
    return AutoTokenizer.from_pretrained(made)


def test_the_seed_makes_the_model(tmp_path: Path) -> None:
    first, same, other = (tiny_model(tmp_path / name, seed=seed) for name, seed in [("a", 3), ("b", 3), ("c", 4)])
    assert digest(first) == digest(same)
    assert digest(first) != digest(other)


def test_making_one_leaves_torchs_own_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    tiny_model(tmp_path / "m", seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_transformers_loads_it(made: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(made)
    assert (model.config.model_type, model.dtype) == ("cwm", torch.float32)
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    assert len(tokenizer) <= model.config.vocab_size == 320
    assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is 7 + 5?"}], return_tensors="pt")
    logits = model(ids["input_ids"] if not isinstance(ids, torch.Tensor) else ids).logits
    assert torch.isfinite(logits).all()


def test_the_number_of_parameters_is_told(tmp_path: Path) -> None:
    size = init_model(InitModel.model_validate(TINY), tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert size == sum(parameter.numel() for parameter in model.parameters())


@given(text=st.text())
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_a_corpus_makes_texts_shorter(tokenizer: Any) -> None:
    assert len(tokenizer(" function")["input_ids"]) < len(" function")
    digits = tokenizer("1234", add_special_tokens=False)["input_ids"]
    assert len(digits) == 4, "a number is spelt digit by digit"


REPEATED = "<output>\nx = 7\n</output>\n3 turns left. x = 12\n"


@pytest.fixture(scope="module")
def with_phrases() -> Any:
    return build_tokenizer([], 340, [REPEATED] * 20 + ["another = 3\n"], 4)


def test_what_repeats_between_digits_and_lines_is_one_token(with_phrases: Any) -> None:
    found = [with_phrases.decode([one]) for one in with_phrases(REPEATED, add_special_tokens=False)["input_ids"]]
    assert found[:3] == ["<output>\n", "x = ", "7"]
    assert found[4:7] == ["</output>\n", "3", " turns left. x = "]
    assert len(with_phrases) <= 340
    assert with_phrases.all_special_tokens == build_tokenizer([], 300).all_special_tokens


@given(
    parts=st.lists(st.one_of(st.text(), st.sampled_from(["<output>\n", " turns left. x = ", "x = ", *SPECIAL_TOKENS])))
)
def test_any_text_with_phrases_comes_back(with_phrases: Any, parts: list[str]) -> None:
    text = "".join(parts)
    ids = with_phrases(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert with_phrases.decode(ids) == text
    assert not set(ids) & set(with_phrases.all_special_ids), "nobody forges a special token by a phrase beside it"


def test_phrases_leave_room_for_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size 300 leaves no room for 40 phrases beside the bytes"):
        tiny_model(tmp_path / "m", vocab_size=300, phrases=40)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_special_token_is_one_id(tokenizer: Any, token: str) -> None:
    (found,) = tokenizer(token, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(found) == token
    assert found in tokenizer.all_special_ids


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path):
        with pytest.raises(InitModelError, match=f"{target} exists: choose another path"):
            init_model(InitModel.model_validate(TINY), target)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_corpus_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InitModelError, match=f"{tmp_path}/nothing: No such file"):
        tiny_model(tmp_path / "m", corpus=(str(tmp_path / "nothing"),))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "shape", [{"kv_heads": 3}, {"heads": 2, "kv_heads": 4}, {"heads": 3, "kv_heads": 1}, {"hidden_size": 36}]
)
def test_an_impossible_shape_is_refused(tmp_path: Path, shape: dict[str, int]) -> None:
    """Heads that do not divide into one another or into the width, or of an odd size, which cannot be rotated."""
    with pytest.raises(ValueError, match="head"):
        tiny_model(tmp_path / "m", **shape)
