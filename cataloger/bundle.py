"""The model bundle as a folder: what lies in it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cataloger import strict
from cataloger.errors import ModelError
from cataloger.spec import FORMAT, MANY_CATEGORIES, ONE_CATEGORY, READABLE, Answer, Picture, Spec, Words

SPEC = "cataloger.json"
WEIGHTS, WORDS = "model.safetensors", "words.safetensors"
MEMBERS = "members"  # of several models that answer as one: a folder of their bundles
# OpenVINO's form of the network in whole numbers of eight bits, in bundles that have one, and its weights.
INT8, INT8_WEIGHTS = "int8.xml", "int8.bin"
WITH_HEAD = 4  # the first format that says `head`; words came with 5


@dataclass(frozen=True)
class _Labels:
    """Of `config.json`; transformers leaves out its own names of two labels."""

    id2label: dict[str, str] = field(default_factory=lambda: {"0": "LABEL_0", "1": "LABEL_1"})


def write_spec(folder: Path, spec: Spec) -> None:
    (folder / SPEC).write_text(json.dumps(asdict(spec), ensure_ascii=False, indent=1))


def read_spec(folder: Path) -> Spec:
    """Raises ModelError when the folder is not a bundle, or one that no training of this version wrote."""
    try:
        data = (folder / SPEC).read_bytes()
        config = (folder / "config.json").read_bytes() if (folder / "config.json").exists() else b""
    except OSError as error:
        raise ModelError(
            f"model {folder}: not a cataloger bundle (no readable {SPEC}); train one with jobs/train.py"
        ) from error
    try:
        stored = strict.parse(dict[str, Any], data)
        version = stored.get("format_version")
        if isinstance(version, int) and version < WITH_HEAD:
            stored = _with_head(stored)
        newer = sorted(stored.keys() - Spec.__dataclass_fields__.keys())
        parts: list[tuple[str, Any, Any]] = [
            ("words", Words, stored.get("words")),
            ("picture", Picture, stored.get("picture")),
        ]
        others = stored.get("others")
        parts += [("others", Answer, other) for other in (others if isinstance(others, list) else ())]
        for part, kind, found in parts:
            if isinstance(found, dict):
                newer += sorted(f"{part}.{name}" for name in found.keys() - kind.__dataclass_fields__.keys())
        newer += [f"format_version {version}"] if isinstance(version, int) and version > FORMAT else []
        if newer:
            raise ModelError(
                f"model {folder}: {SPEC} was made by a newer version of cataloger ({newer[0][:80]!r} is not known here); "
                "install that version, or train the model again with this one"
            )
        if isinstance(version, int) and version < READABLE[0]:
            raise ModelError(
                f"model {folder}: {SPEC} was made by an older version of cataloger (format_version {version}); train the model again"
            )
        spec = strict.parse(Spec, json.dumps(stored).encode())
        labels = strict.parse(_Labels, config).id2label if spec.network and config else {}
    except ValueError as error:
        raise ModelError(
            f"model {folder}: {SPEC} cannot be right: {error}; copy the folder again from where the model was trained"
        ) from error
    if spec.network and not config:
        raise ModelError(
            f"model {folder}: not a cataloger bundle (no readable {SPEC} and config.json); train one with jobs/train.py"
        )
    if spec.network and len(labels) != len(spec.classes):
        raise ModelError(
            f"model {folder}: {SPEC} has {len(spec.classes):,} categories, the network of config.json has {len(labels):,}; "
            "copy the folder again from where the model was trained"
        )
    return spec


def _with_head(stored: dict[str, Any]) -> dict[str, Any]:
    """What a bundle of format 2 or 3 says, as it is said now. Raises ValueError."""
    many = stored.pop("multi_label", False)
    if not isinstance(many, bool):
        raise ValueError("multi_label: must be true or false")
    return {**stored, "head": MANY_CATEGORIES if many else ONE_CATEGORY}


def digest(folder: Path) -> str:
    """SHA-256 over the files that decide a label, 16 hex digits."""
    total = hashlib.sha256()
    files = ("config.json", WEIGHTS, "tokenizer.json", SPEC, WORDS, INT8, INT8_WEIGHTS)
    for name in [file for file in files if (folder / file).exists()]:
        with open(folder / name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    for member in sorted((folder / MEMBERS).glob("*")):
        total.update(digest(member).encode())
    return total.hexdigest()[:16]


def network_shape(folder: Path) -> tuple[int, int]:
    """(padding token, size of the vocabulary) of a model folder: those of its encoder, where it wraps one; 0 where it reads no text."""
    config = json.loads((folder / "config.json").read_text())
    encoder = config.get("encoder") or config
    return int(encoder.get("pad_token_id") or 0), int(encoder.get("vocab_size") or 0)
