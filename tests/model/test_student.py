import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from cataloger.bundle import read_spec
from cataloger.errors import ConfigError
from cataloger.model.network import load_network, new_classifier, save_bundle
from cataloger.model.pretrained import base_model_folder, resolve_pooling
from cataloger.model.student import HEAD, with_head, write_average, write_student
from cataloger.spec import Spec


@pytest.fixture(params=["mean", "cls"])
def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of six narrow layers."""
    base = tmp_path / "base"
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(base_model_folder("minilm")).save_pretrained(base)
    spec = Spec(("A", "B > C", "B > D"), ("title",), 12, request.param, "none")
    save_bundle(tmp_path / "teacher", new_classifier(base, spec), base, spec)
    return tmp_path / "teacher"


@pytest.mark.parametrize(("layers", "chosen"), [(3, (0, 2, 5)), (2, (0, 5)), (1, (5,)), (5, (0, 1, 2, 4, 5))])
def test_layers_are_spread_from_the_first_to_the_last(
    teacher: Path, tmp_path: Path, layers: int, chosen: tuple[int, ...]
) -> None:
    write_student(teacher, tmp_path / "student", layers)
    theirs = load_network(teacher, torch.float32).base_model.state_dict()
    own = AutoModel.from_pretrained(tmp_path / "student")
    assert own.config.num_hidden_layers == layers
    for place, number in enumerate(chosen):
        name = "attention.self.query.weight"
        torch.testing.assert_close(
            own.state_dict()[f"encoder.layer.{place}.{name}"], theirs[f"encoder.layer.{number}.{name}"], rtol=0, atol=0
        )


def test_it_begins_with_the_head_of_its_teacher(teacher: Path, tmp_path: Path) -> None:
    write_student(teacher, tmp_path / "student", 3)
    network = load_network(teacher, torch.float32)
    pooling = "mean" if "MeanPooling" in type(network).__name__ else "cls"
    assert resolve_pooling(tmp_path / "student", "auto") == pooling
    student = new_classifier(tmp_path / "student", Spec(("A", "B > C", "B > D"), ("title",), 12, pooling, "none"))
    with_head(student, tmp_path / "student")
    torch.testing.assert_close(student.classifier.weight, network.classifier.weight)
    for categories in (("B > D", "C", "A"), ("A", "B", "B > D", "E")):  # of others what both have, each in its place
        other = new_classifier(tmp_path / "student", Spec(categories, ("title",), 12, pooling, "none"))
        before = other.classifier.weight.detach().clone()
        with_head(other, tmp_path / "student")
        for number, path in enumerate(categories):
            known = {"A": 0, "B > D": 2}.get(path)
            expected = before[number] if known is None else network.classifier.weight[known]
            torch.testing.assert_close(other.classifier.weight[number], expected)


def test_a_head_of_an_earlier_version_is_of_the_same_categories(teacher: Path, tmp_path: Path) -> None:
    write_student(teacher, tmp_path / "student", 3)
    network = load_network(teacher, torch.float32)
    save_file(load_file(tmp_path / "student" / HEAD), tmp_path / "student" / HEAD)  # which says nothing of them
    student = new_classifier(tmp_path / "student", read_spec(teacher))
    with_head(student, tmp_path / "student")
    torch.testing.assert_close(student.classifier.weight, network.classifier.weight)


@pytest.mark.parametrize("layers", [0, 6, 7])
def test_a_student_has_fewer_layers(teacher: Path, tmp_path: Path, layers: int) -> None:
    with pytest.raises(ConfigError, match=f"--layers {layers}: the model has 6; name fewer"):
        write_student(teacher, tmp_path / "student", layers)


def test_of_several_teachers_it_may_have_all(teacher: Path, tmp_path: Path) -> None:
    write_student(teacher, tmp_path / "student", None)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["num_hidden_layers"] == 6


def test_the_mean_of_several(teacher: Path, tmp_path: Path) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    weights = {name: tensor + 1 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    write_average([teacher, other, teacher], tmp_path / "mean")
    spec = read_spec(teacher)
    found, first = new_classifier(tmp_path / "mean", spec), load_network(teacher, torch.float32).state_dict()
    with_head(found, tmp_path / "mean")
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, first[name] + 1 / 3)


def test_models_of_other_shapes_have_no_mean(teacher: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--average-models: not all of these models were trained from the same base model"
    ):
        write_average([teacher, bundle], tmp_path / "mean")
