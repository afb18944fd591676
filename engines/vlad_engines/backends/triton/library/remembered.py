"""What was measured to be the fastest, remembered in a file."""

from __future__ import annotations

import abc
import json
import logging
import os
import pathlib
import tempfile
from typing import Any, Generic, TypeVar

logger = logging.getLogger("vlad.triton")

ROWS_APART = 512
"""Products whose rows round up to the same multiple share their choice."""

Kind = TypeVar("Kind")
Chosen = TypeVar("Chosen")


class Remembered(abc.ABC, Generic[Kind, Chosen]):
    """A choice for each kind of computation; None stands for that which needs no choosing.

    Args:
        path: JSON file; read now, written with every new choice. One for each GPU model and version of
            whatever was measured.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._chosen = self._read()

    def __contains__(self, kind: Kind) -> bool:
        return self._name(kind) in self._chosen

    def get(self, kind: Kind) -> Chosen | None:
        """The choice for a kind that is there."""
        return self._chosen[self._name(kind)]

    @abc.abstractmethod
    def describe(self) -> str:
        """For people, and to tell apart what computes other bits."""

    def keep(self, kind: Kind, chosen: Chosen | None) -> None:
        """Remember a choice. A place that cannot be written is no reason not to serve."""
        self._chosen[self._name(kind)] = chosen
        document = {
            name: None if one is None else self._to_json(one) for name, one in sorted(self._chosen.items())
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may look at any moment: the file appears complete or not at all.
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, delete=False, encoding="utf-8"
            ) as file:
                json.dump(document, file, indent=1)
            os.replace(file.name, self._path)
        except OSError as error:
            logger.warning("the choice of products cannot be remembered in %s: %s", self._path, error)

    def _read(self) -> dict[str, Chosen | None]:
        try:
            document = json.loads(self._path.read_text("utf-8"))
            return {name: None if one is None else self._from_json(one) for name, one in document.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("the remembered choice of products is unreadable and made again: %s", error)
            return {}

    @staticmethod
    @abc.abstractmethod
    def _name(kind: Kind) -> str:
        """The same for kinds that share a choice."""

    @staticmethod
    @abc.abstractmethod
    def _to_json(chosen: Chosen) -> Any:
        """What the file holds."""

    @staticmethod
    @abc.abstractmethod
    def _from_json(document: Any) -> Chosen:
        """Raises ValueError, KeyError, TypeError or AttributeError for what no `_to_json` wrote."""


def rounded_rows(rows: int) -> int:
    """The same for numbers of rows that share a choice."""
    return -(-rows // ROWS_APART) * ROWS_APART
