"""Rows of measurements in a JSON file, each kept as soon as it is known: a benchmark goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exptilt import provenance
from exptilt.storage import read_json, write_json


class Rows:
    """The rows of a file, those of an earlier run first.

    Args:
        path: The file.
        settings: What all rows have in common; it stands beside them.
    """

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path, self.settings = path, settings
        self.rows: list[dict[str, Any]] = read_json(path)["rows"] if path.exists() else []

    def has(self, described: Mapping[str, Any]) -> bool:
        """Whether there is a row with these values."""
        return any(described.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Write the file with one more row."""
        self.rows.append(row)
        write_json(self.path, {**self.settings, "rows": self.rows, **provenance.origin()})
