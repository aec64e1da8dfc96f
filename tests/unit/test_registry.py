"""Verifiers by name."""

import sys
from pathlib import Path

import pytest

from verifiers import registry
from verifiers.code import CodeVerifier
from verifiers.math import MathVerifier

PLUGIN = Path(__file__).parents[1] / "plugins" / "cwm_rl_printable"


def test_the_built_in_verifiers_are_there_without_installation() -> None:
    assert isinstance(registry.load("math"), MathVerifier)
    assert isinstance(registry.load("code", seconds=2.0), CodeVerifier)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known() -> None:
    with pytest.raises(
        ValueError, match=r"no verifier is called 'maths': did you mean 'math'\? known are .*code.*math"
    ):
        registry.load("maths")


def test_a_module_and_an_attribute_are_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGIN)
    assert registry.load("cwm_rl_printable:Printable").lowest == 0.0


def test_an_installed_plug_in_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cwm_rl.verifiers]\nsomebodys = somebodys_verifier:Theirs\n")
    (tmp_path / "somebodys_verifier.py").write_text(
        (PLUGIN / "cwm_rl_printable.py").read_text() + "\nTheirs = Printable\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.targets()["somebodys"] == "somebodys_verifier:Theirs"
    assert registry.load("somebodys").lowest == 0.0


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise RuntimeError('half written')", "RuntimeError: half written"),
        ("def Broken(): raise KeyError('x')", "KeyError"),
        ("other = 1", "AttributeError"),
        ("Broken = dict", "lacks one of: lowest, verify, check_task"),
    ],
)
def test_a_broken_plug_in_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str
) -> None:
    (tmp_path / "broken_plug_in.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plug_in", raising=False)
    with pytest.raises(ValueError, match=sentence):
        registry.load("broken_plug_in:Broken")


def test_an_option_it_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        registry.load("code", colour="red")
