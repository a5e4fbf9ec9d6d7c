"""The network that sees: the same logits from every engine, whatever else is in the batch; and where picture networks come from."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import MobileViTConfig, MobileViTModel

from cataloger.bundle import read_spec
from cataloger.data.inputs import input_of
from cataloger.errors import ModelError
from cataloger.model import engines
from cataloger.model.fusion import EfficientNetLite, FusionForSequenceClassification
from cataloger.model.network import load_network, new_classifier, save_bundle
from cataloger.model.sight import EMBEDDED, check_sees, load_sight, sight_of
from cataloger.spec import Spec
from drawn import noise


@pytest.fixture(params=["text and pictures", "pictures alone"])
def seeing(request: pytest.FixtureRequest, working_folder: Path, tiny_model: Path) -> Path:
    """An untrained bundle with the embedded network."""
    sight, texts = sight_of(EMBEDDED), ("title",) if request.param.startswith("text") else ()
    spec = Spec(("A", "B", "C"), texts, 12, "mean", "none", picture=sight.picture("image"))
    torch.manual_seed(0)
    model = new_classifier(tiny_model, spec, sight)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    torch.nn.init.normal_(model.missing, std=1.0)
    save_bundle(working_folder / "bundle", model, tiny_model, spec)
    return working_folder / "bundle"


def test_every_engine_gives_the_same_logits_whatever_the_batch(seeing: Path) -> None:
    pytest.importorskip("openvino")
    given = input_of(read_spec(seeing), seeing)
    columns = {"title": ["a shoe", "a much longer name of a shoe", None, "hat", "cup"]}
    images = pa.array([noise(0), None, noise(1), noise(0), noise(2)])
    read = given.read(pa.table({**columns, "image": images}))
    rows = given.encode(read.values.filter(read.reasons.is_null()))
    everything = np.arange(len(rows))
    plain = engines.Torch(seeing, "cpu", torch.float32)
    whole = plain(rows.batch(everything)).numpy()
    assert np.abs(np.diff(whole, axis=0)).max() > 0.05, "pictures make a difference"
    for engine, tolerance in (
        (plain, 1e-4),
        (engines.OpenVino(seeing, torch.float32), 5e-3),
        (engines.OpenVino(seeing, torch.bfloat16), 0.3),
    ):
        for some in ([0], [len(rows) - 1, 1], everything[::-1].tolist()):
            found = engine(rows.batch(np.array(some))).numpy()
            np.testing.assert_allclose(found, whole[some], atol=tolerance, rtol=tolerance)


def test_without_an_index_each_row_has_its_picture(seeing: Path) -> None:
    network = load_network(seeing, torch.float32).eval()
    spec = read_spec(seeing)
    given = input_of(spec, seeing)
    rows = given.encode(given.read(pa.table({"title": ["a", "b"], "image": [noise(0), noise(1)]})).values)
    batch = {name: torch.from_numpy(array) for name, array in rows.batch(np.arange(2)).items()}
    with torch.inference_mode():
        with_index = network(**batch).logits
        del batch["image_index"]
        assert torch.equal(network(**batch).logits, with_index)


def test_batch_norms_keep_their_statistics(seeing: Path) -> None:
    network = load_network(seeing, torch.float32)
    assert isinstance(network, FusionForSequenceClassification)
    before = {name: value.clone() for name, value in network.picture.named_buffers()}
    network.train()
    assert network.training
    network.picture(torch.rand(4, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in network.picture.named_buffers())


def test_a_network_of_another_width_than_it_says_is_refused_before_a_catalog_is_read(working_folder: Path) -> None:
    MobileViTModel(MobileViTConfig(image_size=64)).save_pretrained("mobile")
    with pytest.raises(ModelError, match=r"does not make one vector of a picture \(it makes 1 x 640 numbers\)"):
        check_sees(sight_of("mobile"))


def test_the_embedded_network_is_the_published_one() -> None:
    network, about = load_sight(sight_of(EMBEDDED))
    assert isinstance(network, EfficientNetLite)
    assert about == {"model_type": "efficientnet_lite"}
    assert (
        sum(parameter.numel() for parameter in network.parameters()) == 3_371_008
    )  # 4.65 million with ImageNet's classifier
    # As TensorFlow pads: of an even number of pixels, nothing above and on the left.
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[:, :, 0, 0] = 1
    assert network.conv_stem(pixels)[0, :, 0, 0].allclose(network.conv_stem.weight[:, :, 0, 0].sum(dim=1), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "processor", "wanted"),
    [
        (
            {},
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "resample": 2,
            },
            (224, 0.875, "bilinear"),
        ),
        ({}, {"size": {"height": 384, "width": 384}, "resample": 3}, (384, 1.0, "bicubic")),
        ({}, {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, (224, 0.875, "bicubic")),
        ({}, {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3}, (384, 1.0, "bicubic")),
        ({"image_size": 192}, {}, (192, 1.0, "bicubic")),
        (
            {
                "pretrained_cfg": {
                    "input_size": [3, 260, 260],
                    "crop_pct": 0.89,
                    "interpolation": "bicubic",
                    "mean": [0.5] * 3,
                    "std": [0.5] * 3,
                }
            },
            {},
            (260, 0.89, "bicubic"),
        ),
    ],
    ids=["ResNet", "ViT", "ConvNeXt", "a large ConvNeXt", "no processor", "timm"],
)
def test_what_a_model_reads_is_in_its_own_configuration(
    working_folder: Path, config: dict[str, object], processor: dict[str, object], wanted: tuple[int, float, str]
) -> None:
    (working_folder / "config.json").write_text(json.dumps(config))
    if processor:
        (working_folder / "preprocessor_config.json").write_text(json.dumps(processor))
    found = sight_of(str(working_folder))
    assert (found.size, found.crop, found.resample) == wanted


@pytest.mark.parametrize("kind", ["resnet", "convnext", "vit"])
def test_other_networks_see_as_well(kind: str, working_folder: Path) -> None:
    from transformers import AutoConfig, AutoModel

    small = {
        "resnet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1], "layer_type": "basic"},
        "convnext": {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]},
        "vit": {
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 32,
            "patch_size": 8,
        },
    }[kind]
    AutoModel.from_config(AutoConfig.for_model(kind, **small)).save_pretrained(working_folder / "sight")
    (working_folder / "sight" / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    sight = sight_of(str(working_folder / "sight"))
    spec = Spec(("A", "B"), (), 12, "mean", "none", picture=sight.picture("image"))
    save_bundle(working_folder / "bundle", new_classifier(Path(), spec, sight), Path(), spec)
    network = load_network(working_folder / "bundle", torch.float32).eval()
    with torch.inference_mode():
        assert network(pixel_values=torch.zeros(3, 3, 32, 32, dtype=torch.uint8)).logits.shape == (3, 2)


def test_what_is_no_picture_network_is_said(working_folder: Path, tiny_model: Path) -> None:
    with pytest.raises(
        ModelError, match="image model ./nowhere: no such folder; --image-model takes efficientnet-lite0"
    ):
        sight_of("./nowhere")
    (working_folder / "config.json").write_text('{"image_size": "large"}')
    with pytest.raises(ModelError, match="does not say what it reads"):
        sight_of(str(working_folder))
