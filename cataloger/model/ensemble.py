"""Several models as one, for those who can pay for all of their answers: the mean of what their networks say (Hansen and Salamon 1990).

Its folder is a bundle whose network is a folder of bundles. All read a row in the same way, so that it is read once.
"""

import atexit
import shutil
from collections.abc import Sequence
from dataclasses import replace

from cataloger.bundle import MEMBERS, WEIGHTS, WORDS, read_spec, write_spec
from cataloger.data import seen
from cataloger.data.seen import Seen
from cataloger.errors import ConfigError
from cataloger.infra.node_cache import working_folder
from cataloger.model.registry import ModelSource, fetch_model
from cataloger.spec import Spec

# What decides which rows of a catalog a training leaves out.
SPLIT = ("test_fraction", "test_start", "group_column", "format_version")
# Between the names of several models that answer together.
SEVERAL = " + "


def fetch_models(uris: Sequence[str]) -> ModelSource:
    """One model as it is, several as one. Raises ConfigError where they cannot answer together, ModelError."""
    if not uris:
        raise ConfigError("--model: name at least one model")
    sources = [fetch_model(uri) for uri in uris]
    return sources[0] if len(sources) == 1 else _together(sources)


def _together(sources: Sequence[ModelSource]) -> ModelSource:
    """The words, thresholds and category numbers are those of the first."""
    first = sources[0]
    spec = read_spec(first.folder)
    for one in sources:
        _check(one, first, spec)
    holder = working_folder("ensemble")
    atexit.register(holder.__exit__, None, None, None)
    folder = holder.__enter__() / "bundle"
    shutil.copytree(first.folder, folder, ignore=lambda _, names: [name for name in names if name in (WEIGHTS,)])
    for number, one in enumerate(sources):
        member = folder / MEMBERS / str(number)
        shutil.copytree(one.folder, member, ignore=lambda _, names: [name for name in names if name == WORDS])
        write_spec(member, of_network(read_spec(one.folder)))
    samples = [sample for one in sources if (sample := seen.read(one.folder))]
    (folder / seen.FILE).unlink(missing_ok=True)
    if len(samples) == len(sources) and (both := Seen.union(samples)).tells_enough(samples[0]):
        seen.write(folder, both)
    # What a certificate says of the first one's tiers, nobody has seen of all together.
    own = spec.without_tiers()
    words = replace(own.words, network_temperature=1.0) if own.words else None
    write_spec(folder, replace(own, temperature=1.0, words=words))
    return ModelSource(folder, SEVERAL.join(one.uri for one in sources), None)


def _check(one: ModelSource, first: ModelSource, spec: Spec) -> None:
    theirs = read_spec(one.folder)
    what = f"model {one.uri}"
    if not theirs.network or theirs.tags or theirs.others or theirs.picture:
        raise ConfigError(
            f"{what}: only networks that read texts and answer with categories answer together; name it alone"
        )
    for name, said in (("categories", "other categories"), ("head", "another kind of answer")):
        if getattr(theirs, name) != getattr(spec, name):
            raise ConfigError(f"{what}: has {said} than {first.uri}; name one of them")
    if one.uri != first.uri and any(getattr(theirs, name) != getattr(spec, name) for name in SPLIT):
        raise ConfigError(
            f"{what}: was trained with other rows held out than {first.uri} (--test-fraction, --test-start, --group-column); name one of them"
        )
    alike = ("text_columns", "max_tokens")
    same = all(getattr(theirs, name) == getattr(spec, name) for name in alike)
    if not same or (one.folder / "tokenizer.json").read_bytes() != (first.folder / "tokenizer.json").read_bytes():
        raise ConfigError(
            f"{what}: reads a row in another way than {first.uri} (columns, tokens or their number); name one of them, or make one model "
            "of both with jobs/compress.py"
        )


def of_network(spec: Spec) -> Spec:
    """As the network alone answers, by the temperature that was fitted for it."""
    return replace(spec, words=None, temperature=spec.words.network_temperature if spec.words else spec.temperature)
