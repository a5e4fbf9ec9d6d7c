"""What a model is beside its weights: what it reads, what it answers, and what was fitted for its answers."""

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cataloger.errors import ConfigError
from cataloger.taxonomy import SEPARATOR, Taxonomy

# Of the bundles that are written: 2 had another normal form of the texts that decide the split (`text.split_hash`), 2 and 3
# said `multi_label` where `head` stands now, and 6 is the first with tags and several answers.
FORMAT = 6
READABLE = (2, 3, 4, 5, FORMAT)
# What a model answers (see `heads`).
ONE_CATEGORY, MANY_CATEGORIES, TAGS = "one_category", "many_categories", "tags"
HEADS = (ONE_CATEGORY, MANY_CATEGORIES, TAGS)
# In place of a pooling, where words answer alone.
NO_NETWORK = "none"
MOST_TOKENS = 1 << 20  # no encoder reads as many; what is beyond was not written by us
MOST_SIDE = 2_048  # likewise, in pixels
RESAMPLES = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Words:
    """How the linear model of a bundle (`words.safetensors`) and its network answer together. Raises ValueError."""

    temperature: float = 1.0
    shift: float = 0.0
    """A score becomes the sigmoid of (score - shift) / temperature; those of one category are made to sum to one."""
    weight: float = 1.0
    """The logarithm of their probability is multiplied by this before it is added to the network's logits."""
    network_temperature: float = 1.0
    """Divides the network's logits before that."""
    alone_from: float | None = None
    """The probability from which on their answer stands without the network's; without a number it never does."""
    agreement: float = 0.0
    """Share of such answers that are the joined model's too: the lower end of its 95% interval on the validation rows."""
    certificate: str = ""
    """What is promised of such answers, for people."""
    thresholds: tuple[float, ...] = ()
    """Those in place of the spec's, where words and network are asked about every row."""

    def __post_init__(self) -> None:
        for name, holds, what in (
            ("temperature", 1e-3 <= self.temperature <= 1e3, "from 0.001 to 1,000"),
            ("shift", abs(self.shift) <= 1e3, "from -1,000 to 1,000"),
            ("weight", 0 <= self.weight <= 1e3, "from 0 to 1,000"),
            ("network_temperature", 1e-3 <= self.network_temperature <= 1e3, "from 0.001 to 1,000"),
            ("alone_from", self.alone_from is None or 0 <= self.alone_from <= 1, "from 0 to 1, or null"),
            ("agreement", 0 <= self.agreement <= 1, "from 0 to 1"),
        ):
            if not holds:
                raise ValueError(f"words.{name}: must be {what}")


@dataclass(frozen=True)
class Picture:
    """What the network of a bundle reads of a picture. Raises ValueError."""

    column: str
    size: int
    """Pixels of each side of the square that it reads."""
    crop: float = 0.875
    """That square lies in the middle of the picture and has this share of its shorter side."""
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        for name, holds, what in (
            ("column", bool(self.column), "a name"),
            ("size", 8 <= self.size <= MOST_SIDE, f"from 8 to {MOST_SIDE:,}"),
            ("crop", 0 < self.crop <= 1, "above 0 and at most 1"),
            ("resample", self.resample in RESAMPLES, " or ".join(RESAMPLES)),
        ):
            if not holds:
                raise ValueError(f"picture.{name}: must be {what}")


@dataclass(frozen=True)
class Answer:
    """What a model answers beside its first answer, published in the column that it was learnt from. Raises ValueError."""

    column: str
    head: str
    categories: tuple[str, ...]
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    category_thresholds: tuple[float, ...] = ()
    allowed: tuple[tuple[int, ...] | None, ...] = ()
    """Of tags, the numbers of the names that each category of the first answer may have, null where it may have all; without any,
    all categories may have all."""

    def __post_init__(self) -> None:
        if not self.column:
            raise ValueError("others.column: must be a name")
        if any(not 0 <= name < len(self.categories) for names in self.allowed for name in names or ()):
            raise ValueError("others.allowed: must be numbers of names")


@dataclass(frozen=True)
class Spec:
    """What `cataloger.json` adds to the Hugging Face files. Raises ValueError that names the field that cannot be so."""

    categories: tuple[str, ...]
    text_columns: tuple[str, ...]
    max_tokens: int
    pooling: str
    catalog_fingerprint: str
    test_fraction: float = 0.0
    test_start: float = 0.0
    validation_fraction: float | None = None
    """Share of the other texts that its network has not learnt from either; 0 where it was validated on another catalog, or has learnt from
    them in the end (`--fold-back`), and null where that was not written down."""
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    """Per level of the tree, the least certainty of an answer that is trusted there; without them all are. Where a product has
    any number of categories just one, for all of them together."""
    head: str = ONE_CATEGORY
    """What the model answers: one category per product, any number of them, or tags of words. Their names are its categories then."""
    label_column: str = ""
    """The column that tags are published in, named as the one they were learnt from."""
    category_thresholds: tuple[float, ...] = ()
    """Where a product has any number of categories, the probability from which on it has each; the confidence from which on a tag
    of each name is trusted."""
    group_column: str | None = None
    """Column whose values, in place of the texts, decided on which side of the split a row falls."""
    words: Words | None = None
    """Without a value the network answers alone."""
    picture: Picture | None = None
    """Without a value the network reads texts alone; without text columns, pictures alone."""
    others: tuple[Answer, ...] = ()
    """Its further answers, from the same reading."""
    format_version: int = FORMAT

    @functools.cached_property
    def answers(self) -> tuple["Spec", ...]:
        """A spec for each answer, as a model with that one alone would have it: the first answer first."""
        own = replace(self, others=())
        return own, *(
            replace(
                own,
                categories=other.categories,
                head=other.head,
                label_column=other.column,
                temperature=other.temperature,
                thresholds=other.thresholds,
                category_thresholds=other.category_thresholds,
                words=None,
            )
            for other in self.others
        )

    def with_answers(self, answers: Sequence["Spec"]) -> "Spec":
        """With what was fitted for each of `answers`."""
        first, *others = answers
        found = [
            replace(
                old,
                temperature=one.temperature,
                thresholds=one.thresholds,
                category_thresholds=one.category_thresholds,
            )
            for old, one in zip(self.others, others, strict=True)
        ]
        return replace(first, others=tuple(found))

    @property
    def prefix(self) -> str:
        """What stands before the names of metrics and files of a further answer: its column, as MLflow takes it; no other metric has a
        slash, but those of groups of products."""
        return prefix_of(self.label_column)

    @property
    def tags(self) -> bool:
        """Whether any of the answers is of words."""
        return TAGS in (self.head, *(other.head for other in self.others))

    @functools.cached_property
    def width(self) -> int:
        """How many logits a row has, or each of its words, in all answers together."""
        return sum(len(answer.classes) for answer in self.answers)

    def reading(self, text_columns: tuple[str, ...] | None, image_column: str | None) -> "Spec":
        """As it reads columns of other names, where there are some. Raises ConfigError."""
        texts = self.text_columns if text_columns is None else text_columns
        if bool(texts) != bool(self.text_columns):
            read = "pictures alone" if texts else "texts"
            raise ConfigError(f"--text-columns {' '.join(texts)}: the model reads {read}; leave the option out")
        if image_column and not self.picture:
            raise ConfigError(f"--image-column {image_column}: the model reads texts alone; leave the option out")
        picture = replace(self.picture, column=image_column) if self.picture and image_column else self.picture
        return replace(self, text_columns=texts, picture=picture)

    def without_tiers(self) -> "Spec":
        """As it answers where words and network are asked about every row."""
        if not self.network or self.words is None or self.words.alone_from is None:
            return self
        words = replace(self.words, alone_from=None)
        return replace(self, temperature=1.0, thresholds=words.thresholds or self.thresholds, words=words)

    @property
    def network(self) -> bool:
        """Whether there is one: without it words answer alone."""
        return self.pooling != NO_NETWORK

    @property
    def classes(self) -> tuple[str, ...]:
        """What each logit of the network is of: a category; or of each word, that it is of no tag, begins one, or goes on with one."""
        if self.head != TAGS:
            return self.categories
        return ("O", *(f"{way}-{name}" for name in self.categories for way in "BI"))

    def __post_init__(self) -> None:
        tags = self.head == TAGS
        for path in self.categories:
            if not all(level.strip() for level in ([path] if tags else path.split(SEPARATOR))):
                raise ValueError(f"categories: {path[:80]!r} has an empty level")
        if not 0 < len(self.categories) == len(set(self.categories)):
            raise ValueError("categories: must be at least one, and no two alike")
        one = self.head == ONE_CATEGORY
        own, levels = 0 if one else len(self.categories), Taxonomy(self.categories).depth if one else 1
        for name, holds, what in (
            ("max_tokens", 3 <= self.max_tokens <= MOST_TOKENS, f"from 3 to {MOST_TOKENS:,}"),
            ("pooling", self.pooling in ("mean", "cls", NO_NETWORK), f"mean, cls or {NO_NETWORK}"),
            ("words", self.network or self.words is not None, f"there where pooling is {NO_NETWORK}"),
            ("text_columns", bool(self.text_columns or self.picture), "at least one, where no picture is read"),
            ("picture", self.network or not self.picture, f"null where pooling is {NO_NETWORK}"),
            ("head", self.head in HEADS, " or ".join(HEADS)),
            ("label_column", not tags or bool(self.label_column), f"a name where head is {TAGS}"),
            ("words", not (self.words and (self.tags or self.others)), "null where there are tags, or several answers"),
            (
                "picture",
                not (self.picture and (self.tags or self.others)),
                "null where there are tags, or several answers",
            ),
            ("test_fraction", 0 <= self.test_fraction < 1, "at least 0 and below 1"),
            ("test_start", 0 <= self.test_start < 1, "at least 0 and below 1"),
            ("validation_fraction", 0 <= (self.validation_fraction or 0) < 1, "at least 0 and below 1, or null"),
            ("temperature", 1e-3 <= self.temperature <= 1e3, "from 0.001 to 1,000"),
            ("thresholds", _thresholds(self.thresholds, levels), f"none, or {levels} numbers from 0 on"),
            (
                "words",
                _thresholds(self.words.thresholds if self.words else (), levels),
                f"with {levels} thresholds or none",
            ),
            ("category_thresholds", _thresholds(self.category_thresholds, own), f"none, or {own} numbers from 0 on"),
            ("format_version", self.format_version in READABLE, "one of " + " and ".join(map(str, READABLE))),
        ):
            if not holds:
                raise ValueError(f"{name}: must be {what}")
        names = [self.label_column, *(other.column for other in self.others)]
        if len(names) != len(set(names)):
            raise ValueError(f"others: two answers of column {names[-1]!r}")
        if self.others:
            _ = self.answers  # each is checked as it is made
        if any(len(other.allowed) not in (0, len(self.categories)) for other in self.others):
            raise ValueError("others.allowed: must be one for each category, or none")


def prefix_of(column: str) -> str:
    """Of the metrics of the further answer of a column, in what MLflow takes as a name; another one for each column."""
    plain = re.sub(r"[^\w .-]", "_", column, flags=re.ASCII)
    return f"{plain}/" if plain == column else f"{plain}-{hashlib.sha256(column.encode()).hexdigest()[:6]}/"


def _thresholds(values: tuple[float, ...], count: int) -> bool:
    return len(values) in (0, count) and all(0 <= value < math.inf for value in values)
