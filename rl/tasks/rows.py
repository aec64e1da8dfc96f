"""Rows of JSONL files, streamed, each of which knows where it stands."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from verifiers.errors import UserError

MAX_LINE_BYTES = 16 << 20


class DataError(UserError, ValueError):
    """A data file that cannot be used; the message is one sentence with file, line and column as far as they apply."""


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file. `columns` maps our field names to the file's column names."""

    file: Path
    line: int
    data: Mapping[str, Any]
    columns: Mapping[str, str]

    def error(self, problem: str, field: str | None = None) -> DataError:
        """The error that says `problem` of this row, or of its column for `field`."""
        column = f", column '{self.columns.get(field, field)}'" if field else ""
        return DataError(f"{self.file}, line {self.line}{column}: {problem}")

    def has(self, field: str) -> bool:
        """Whether the row has a value there that is not null."""
        return self.data.get(self.columns.get(field, field)) is not None

    def get(self, field: str) -> Any:
        """Raises DataError if the column is missing."""
        if not self.has(field):
            columns = ", ".join(sorted(map(str, self.data))[:20])
            raise self.error(f"missing; the row has {columns or 'no columns'}", field)
        return self.data[self.columns.get(field, field)]

    def text(self, field: str) -> str:
        """A non-empty text, or a number written as one. Raises DataError."""
        value = self.get(field)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.error(f"must be text, not {_kind(value)}", field)
        if not value.strip():
            raise self.error("is empty", field)
        return value

    def items(self, field: str) -> list[Any]:
        """The field's value, which must be a list. Raises DataError."""
        value = self.get(field)
        if not isinstance(value, list):
            raise self.error(f"must be a list, not {_kind(value)}", field)
        return value


def read_rows(file: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    """Stream a .jsonl or .jsonl.gz file; blank lines are skipped. Raises DataError, also where there is no row."""
    found = False
    try:
        with closing(_open(file)) as stream:
            line = 0
            while content := stream.readline(MAX_LINE_BYTES + 1):
                line += 1
                if content.strip():
                    found = True
                    yield Row(file, line, _parse(content, f"{file}, line {line}"), columns)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if not found:
        raise DataError(f"{file}: holds no rows")


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _parse(content: bytes, where: str) -> dict[str, Any]:
    if len(content) > MAX_LINE_BYTES:
        raise DataError(f"{where}: is longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON at character {error.pos}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is JSON that cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{where}: must be a JSON object, not {_kind(data)}")
    return data


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
