"""What single tokens decode to, by a run's own tokenizer; loaded when somebody first looks at tokens."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rl.reports.series import mapping, read_object

_KEPT = 4
_FILE = "tokenizer.json"


class Vocabulary:
    """Tokenizers of the runs that were looked at last. Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[Path, int], Any] = OrderedDict()

    def texts(self, run: Path, tokens: Iterable[int]) -> Mapping[int, str]:
        """Token -> text; empty where there is no tokenizer on this machine. A part of a character is U+FFFD."""
        tokenizer = self._of(run)
        if tokenizer is None:
            return {}
        return {token: tokenizer.decode([token], skip_special_tokens=False) for token in set(tokens)}

    def _of(self, run: Path) -> Any:
        own = run / "model"
        named = mapping(read_object(run / "config.json").get("model")).get("path")
        file = (own if own.is_dir() else Path(str(named))) / _FILE
        with suppress(OSError), self._lock:
            key = file, file.stat().st_mtime_ns
            if key not in self._held:
                self._held[key] = _load(file)
            self._held.move_to_end(key)
            while len(self._held) > _KEPT:
                self._held.popitem(last=False)
            return self._held[key]
        return None


def _load(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - it raises that alone, and a page without texts is a page
        return None
