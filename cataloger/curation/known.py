"""Which categories people may name: those of the model, and all that lie above them."""

import difflib
from collections.abc import Iterable, Sequence
from functools import cached_property

from cataloger.errors import ConfigError
from cataloger.spec import TAGS, Spec
from cataloger.taxonomy import SEPARATOR


class Known:
    """The nodes of a model's tree."""

    def __init__(self, categories: Sequence[str]) -> None:
        self.categories = tuple(categories)

    @classmethod
    def of(cls, spec: Spec, flag: str) -> "Known":
        """Raises ConfigError for a model without categories."""
        if spec.head == TAGS:
            raise ConfigError(f"{flag}: the model gives tags, and {flag} decides on categories; leave it out")
        return cls(spec.categories)

    @cached_property
    def nodes(self) -> set[str]:
        found: set[str] = set()
        for path in self.categories:
            levels = path.split(SEPARATOR)
            found.update(SEPARATOR.join(levels[:depth]) for depth in range(1, len(levels) + 1))
        return found

    def check(self, paths: Iterable[str], where: str, who: str = "the model") -> None:
        """Raises ConfigError that names the first one that is not known, and the one most like it."""
        unknown = sorted({path for path in paths if path not in self.nodes})
        if unknown:
            others = f"; {len(unknown) - 1:,} more are unknown" if len(unknown) > 1 else ""
            raise ConfigError(f"{where}: {who} knows no category {unknown[0]!r}{self._nearest(unknown[0])}{others}")

    def _nearest(self, path: str) -> str:
        near = difflib.get_close_matches(path, self.nodes, 1, 0.0)
        return f"; the nearest is {near[0]!r}" if near else ""
