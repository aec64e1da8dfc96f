"""The terminal's view of a run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import closed_group

from rl.cli import main
from rl.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "runs/one").mkdir(parents=True)
    with Ledger.create(tmp_path / "runs/one", "one", {"run": {"steps": 7}}) as ledger:
        ledger.publish(0)
        group = closed_group(ledger, 1.0, -1.0)
        ledger.commit(1, [one.episode.key for one in group.members], {"entropy": 1.5, "reward": {"[red]x": 0.25}})
        ledger.fault("worker-0", "EngineError", "[bold]died\x1b[31m")
        yield ledger


def test_it_shows_the_essentials_and_obeys_no_words_of_others(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for arguments in (["top", "--once"], ["top", "runs/one"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        for words in ("one  running", "step 1 of 7", "trained 2", "[red]x", "+0.25", "[bold]died\\x1b[31m"):
            assert words in shown


def test_no_run_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["top"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("cwm-rl: there is no run in runs")
