"""A model that reads and sees: trained, labelled at night, asked elsewhere. Its words say what a product is, its picture of what colour."""

import base64
import functools
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cataloger.bundle import read_spec, write_spec
from cataloger.config import EvaluateConfig, LabelConfig, TrainConfig, VerifyConfig
from cataloger.data.images import BROKEN, MISSING, OK, TOO_LARGE, UNREACHABLE, UNREAD
from cataloger.data.units import plan_units
from cataloger.errors import PublishError, TrainingError
from cataloger.explaining.occlusion import Explainer
from cataloger.infra.storage import locate
from cataloger.labeling import job
from cataloger.labeling.job import label
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.publishing import snapshot, upkeep
from cataloger.training.job import train
from drawn import GREEN, GREY, RED, jpeg, shop
from servers import answering


@pytest.fixture(scope="module")
def trained(
    ray_session: None, in_process: None, tiny_model: Path, tiny_sight: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    """(the bundle, its metrics)"""
    from cataloger.training.job import train

    folder = tmp_path_factory.mktemp("seeing")
    pq.write_table(pa.table(shop(600, 0)), folder / "labelled.parquet")
    result = train(
        TrainConfig(
            catalog=str(folder / "labelled.parquet"),
            text_columns=("title",),
            image_column="image",
            base_model=str(tiny_model),
            image_model=str(tiny_sight),
            max_tokens=12,
            learning_rate=2e-3,
            epochs=8,
            patience=8,
            batch_size=16,
            test_fraction=0.1,
            storage=str(folder / "checkpoints"),
            model_name="seeing",
        )
    )
    return fetch_model(result.model_uri).folder, result.metrics


def labels_of(output: str = "labels") -> pa.Table:
    run = json.loads(Path(output, "_latest.json").read_text())["run"]
    folder = Path(output, f"run={run}")
    return pa.concat_tables([pq.read_table(part, partitioning=None) for part in sorted(folder.glob("part-*"))])


def rejects_of(output: str = "labels") -> dict[str, str]:
    run = json.loads(Path(output, "_latest.json").read_text())["run"]
    parts = sorted(Path(output, f"run={run}", "_rejects").glob("part-*"))
    rows = [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]
    return {row["id"]: row["reason"] for row in rows}


def test_it_learns_what_neither_words_nor_pictures_know_alone(trained: tuple[Path, dict[str, float]]) -> None:
    bundle, metrics = trained
    assert metrics["val_accuracy"] > 0.8
    assert metrics["val_words_accuracy"] < 0.6
    spec = read_spec(bundle)
    assert spec.picture
    assert (spec.picture.column, spec.picture.size, spec.picture.crop, spec.picture.resample) == (
        "image",
        32,
        1.0,
        "bilinear",
    )


@pytest.fixture
def odd(write: Callable[..., Path]) -> Path:
    """A catalog with all that happens to pictures."""
    rows = shop(12, 1)
    rows["image"][0] = None
    rows["image"][1] = rows["image"][1][:-80]
    rows["image"][2] = b"<html>not here</html>"
    rows["title"][3] = None
    rows["title"][4], rows["image"][4] = None, None
    rows["title"][5], rows["image"][5] = "", b"\x00\x01"
    rows["title"][7], rows["image"][7] = rows["title"][6], rows["image"][6]
    return write("odd.parquet", **rows)


def test_odd_pictures_cost_no_label_where_there_is_text(trained: tuple[Path, dict[str, float]], odd: Path) -> None:
    result = label(
        LabelConfig(catalog=str(odd), output="labels", model=(str(trained[0]),), tiers="off", max_reject_fraction=1)
    )
    found = {row["id"]: row for row in labels_of().to_pylist()}
    status = {name: row["image_status"] for name, row in found.items()}
    assert [status[f"P1-{row}"] for row in (0, 1, 2, 3)] == [MISSING, BROKEN, BROKEN, OK]
    assert rejects_of() == {
        "P1-4": "no text in any of the text columns, and the picture is missing",
        "P1-5": "no text in any of the text columns, and the picture is broken",
    }
    assert (result.labelled, result.rejects) == (10, 2)
    true = dict(zip(*(pq.read_table(odd).column(name).to_pylist() for name in ("id", "category_path")), strict=True))
    seen = [row for name, row in found.items() if row["image_status"] == OK and name != "P1-3"]
    assert np.mean([row["category"] == true[row["id"]] for row in seen]) >= 0.7
    # Without a picture the thing is known all the same.
    assert [found[f"P1-{row}"]["category"].split(" > ")[0] for row in range(3)] == [
        true[f"P1-{row}"].split(" > ")[0] for row in range(3)
    ]
    assert found["P1-6"]["text_hash"] == found["P1-7"]["text_hash"]
    manifest = snapshot.read_manifest(locate("labels"), result.run)
    assert manifest["images"] == {OK: 7, MISSING: 1, BROKEN: 2}
    page = Path("labels", f"run={result.run}", "_report.html").read_text()
    assert "picture missing" in page
    assert "picture broken" in page
    doubtful = {name for name, row in found.items() if row["needs_review"] and name not in ("P1-7",)}
    assert doubtful, "those that need review are shown"
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(shown) == sum(status[name] == OK for name in doubtful)
    for data in shown:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert (image.format, image.size) == ("JPEG", (40, 40))


def test_a_night_later_only_what_is_new_is_asked(
    trained: tuple[Path, dict[str, float]], write: Callable[..., Path]
) -> None:
    rows = shop(40, 2)
    config = LabelConfig(
        catalog=str(write("shop.parquet", **rows)), output="labels", model=(str(trained[0]),), tiers="off"
    )
    first = label(config)
    before = {row["id"]: row for row in labels_of().to_pylist()}
    rows["image"][0] = jpeg(GREEN, GREY, (40, 40))
    write("shop.parquet", **rows)
    second = label(config)
    after = {row["id"]: row for row in labels_of().to_pylist()}
    assert (first.cost.forwarded, second.cost.forwarded, second.cost.carried) == (40, 1, 39)
    assert {name: row for name, row in after.items() if name != "P2-0"} == {
        name: row for name, row in before.items() if name != "P2-0"
    }
    assert after["P2-0"]["text_hash"] != before["P2-0"]["text_hash"]
    assert after["P2-0"]["image_status"] == OK


def test_the_same_labels_everywhere(
    trained: tuple[Path, dict[str, float]], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cataloger.model import pyfunc
    from cataloger.model.pyfunc import Categorizer

    rows = shop(30, 3)
    rows["image"][0] = None
    catalog = write("shop.parquet", **rows)
    label(LabelConfig(catalog=str(catalog), output="labels", model=(str(trained[0]),), precision="fp32"))
    published = labels_of().sort_by("id").to_pandas().set_index("id")
    served = Categorizer(trained[0]).predict(pd.DataFrame(rows).set_index("id"))
    assert served.loc[published.index, "category"].tolist() == published["category"].tolist()
    in_base64 = [data and base64.b64encode(data).decode() for data in rows["image"]]
    again = Categorizer(trained[0]).predict(pd.DataFrame({**rows, "image": in_base64}).set_index("id"))
    assert again.loc[published.index, "category"].tolist() == published["category"].tolist()
    monkeypatch.setattr(pyfunc, "MOST_PIXELS", 7 * 32 * 32)  # a few rows at a time
    structs = [{"bytes": data, "path": None} for data in rows["image"]]
    again = Categorizer(trained[0]).predict(pd.DataFrame({**rows, "image": structs}).set_index("id"))
    assert again.loc[published.index, "category"].tolist() == published["category"].tolist()
    from cataloger.evaluation.evaluate import evaluate

    evaluate(
        EvaluateConfig(catalog=str(catalog), model=(str(trained[0]),), predictions="said.parquet", precision="fp32")
    )
    said = pq.read_table("said.parquet").to_pandas().set_index("id")
    assert said.loc[published.index, "category"].tolist() == published["category"].tolist()
    # Titles say nothing of colours: without the picture most rows would have another category.
    assert said["slice.image_status"].value_counts().to_dict() == {OK: 29, MISSING: 1}
    blind = Categorizer(trained[0]).predict(pd.DataFrame({**rows, "image": [None] * 30}).set_index("id"))["category"]
    decided = np.where(blind.loc[said.index] == said["category"], "text", "picture")
    assert said["slice.decided_by"].tolist() == decided.tolist()
    assert said.loc["P3-0", "slice.decided_by"] == "text"
    assert 0.3 < np.mean(decided == "picture") < 0.97


ELSEWHERE = """
import io, json, sys
sys.modules["cataloger"] = None  # to import it is an error
import numpy, torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer

bundle, rows = sys.argv[1], json.load(sys.stdin)
model = AutoModelForSequenceClassification.from_pretrained(bundle, trust_remote_code=True).eval()
words = AutoTokenizer.from_pretrained(bundle, trust_remote_code=True)([row["title"] for row in rows], padding=True, return_tensors="pt")
pictures = [Image.open(io.BytesIO(bytes.fromhex(row["image"]))).resize((32, 32), Image.BILINEAR) for row in rows]
pixels = torch.from_numpy(numpy.stack([numpy.asarray(one) for one in pictures])).permute(0, 3, 1, 2)
with torch.inference_mode():
    logits = model(input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=pixels).logits
print(json.dumps([model.config.id2label[int(best)] for best in logits.argmax(dim=1)]))
"""


def test_the_bundle_answers_where_cataloger_is_not(
    trained: tuple[Path, dict[str, float]], write: Callable[..., Path], working_folder: Path
) -> None:
    from cataloger.model.tiers import Tiers

    rows = shop(20, 4)
    given = [{"title": title, "image": data.hex()} for title, data in zip(rows["title"], rows["image"], strict=True)]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(trained[0])],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        cwd=working_folder,
    )
    network = Tiers(trained[0], spec=replace(read_spec(trained[0]), words=None))
    assert json.loads(done.stdout) == network.label(pa.table(rows)).column("category").to_pylist()


class Shelf(BaseHTTPRequestHandler):
    """Pictures by number; some answers are as the web has them."""

    asked: ClassVar[list[tuple[str, str]]] = []
    pictures: ClassVar[dict[str, bytes]] = {}
    down: ClassVar[set[str]] = set()

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append((self.command, self.path))
        data = self.pictures.get(self.path)
        busy = self.path == "/busy.jpg" and self.asked.count((self.command, self.path)) == 1
        code = 503 if busy or self.path in self.down else 200 if data is not None else 404
        self.send_response(code)
        size = 1 << 40 if self.path == "/huge.jpg" else len(data or b"")
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        if body and code == 200 and data:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def shelf() -> Iterator[str]:
    Shelf.asked, Shelf.pictures, Shelf.down = [], {}, set()
    with answering(Shelf) as address:
        yield address


def test_pictures_that_lie_elsewhere(
    trained: tuple[Path, dict[str, float]], write: Callable[..., Path], shelf: str, working_folder: Path
) -> None:
    rows = shop(8, 5)
    pictures = list(rows["image"])
    Shelf.pictures = {f"/{row}.jpg": pictures[row] for row in range(3)} | {
        "/busy.jpg": pictures[3],
        "/huge.jpg": pictures[4],
        "/page.jpg": b"<html>moved</html>",
    }
    (working_folder / "pictures").mkdir()
    (working_folder / "pictures" / "6.jpg").write_bytes(pictures[6])
    rows["image"] = [
        *(f"{shelf}/{row}.jpg" for row in range(3)),
        *(f"{shelf}/busy.jpg", f"{shelf}/huge.jpg", f"{shelf}/page.jpg"),
        *("pictures/6.jpg", f"{shelf}/gone.jpg"),
    ]
    catalog = write("shop.parquet", **rows)
    config = LabelConfig(catalog=str(catalog), output="labels", model=(str(trained[0]),), tiers="off")
    label(config)
    first = {row["id"]: row for row in labels_of().to_pylist()}
    assert [first[f"P5-{row}"]["image_status"] for row in range(8)] == [OK, OK, OK, OK, TOO_LARGE, BROKEN, OK, MISSING]
    # Bytes and the same picture elsewhere have the same label.
    write("bytes.parquet", **{**rows, "image": [*pictures[:4], None, None, pictures[6], None]})
    label(LabelConfig(catalog="bytes.parquet", output="by-bytes", model=(str(trained[0]),), tiers="off"))
    second = {row["id"]: row for row in labels_of("by-bytes").to_pylist()}
    decided = ("category", "confidence", "alternatives")
    assert [[first[name][column] for column in decided] for name in first] == [
        [second[name][column] for column in decided] for name in first
    ]
    # The next night looks whether they are the same, and fetches none again, but for the page.
    Shelf.asked.clear()
    write("shop.parquet", **rows)
    result = label(config)
    assert result.cost.forwarded == 0
    shown = {f"/{row}.jpg" for row in range(3) if first[f"P5-{row}"]["needs_review"]} | {"/busy.jpg", "/page.jpg"}
    assert {path for command, path in Shelf.asked if command == "GET"} <= shown
    # A picture that changes there is another one.
    Shelf.pictures["/0.jpg"] = jpeg(GREEN if rows["category_path"][0].endswith("Red") else RED, GREY, (40, 40))
    write("shop.parquet", **rows)
    assert label(replace(config, max_changed_fraction=1)).cost.forwarded == 1


def test_a_server_that_is_down_holds_the_night_back(
    trained: tuple[Path, dict[str, float]], shelf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one of four units; one row there has nothing but its picture. When the server is back, that unit is labelled again."""
    rows = shop(40, 7)
    Shelf.pictures = {f"/{row}.jpg": rows["image"][row] for row in range(40)}
    rows["image"] = [f"{shelf}/{row}.jpg" for row in range(40)]
    rows["title"][15] = None
    pq.write_table(pa.table(rows), "shop.parquet")
    monkeypatch.setattr(job, "plan_units", functools.partial(plan_units, unit_rows=10))
    config = LabelConfig(catalog="shop.parquet", output="labels", model=(str(trained[0]),), tiers="off")
    Shelf.down = {f"/{row}.jpg" for row in range(10, 17)}
    with pytest.raises(
        PublishError, match=r"pictures of 7 of 40 rows could not be reached \(17\.5%, the limit is 1\.0%\)"
    ):
        label(config)
    assert not Path("labels/_latest.json").exists()
    assert list(Path("labels").glob("run=*/_rejects/*")), "the row without a title"
    (unfinished,) = Path("labels").glob("run=*/part-00001.parquet")
    assert set(pq.read_table(unfinished, partitioning=None).column("image_status").to_pylist()) == {OK, UNREACHABLE}
    # Whoever wants these labels can have them.
    assert label(replace(config, output="anyway", max_reject_fraction=0.3)).labelled == 39
    Shelf.down = set()
    result = label(config)
    assert (result.labelled, result.rejects, result.cost.forwarded) == (40, 0, 10)
    assert result.images == {OK: 40}
    assert not list(Path("labels").glob("run=*/_rejects/*"))
    assert upkeep.verify(VerifyConfig("labels")).rows == 40


def test_no_training_learns_without_the_pictures_of_a_server_that_is_down(
    shelf: str, tiny_model: Path, tiny_sight: Path, working_folder: Path
) -> None:
    rows = shop(60, 8)
    Shelf.pictures = {f"/{row}.jpg": rows["image"][row] for row in range(60)}
    rows["image"] = [f"{shelf}/{row}.jpg" for row in range(60)]
    rows["title"][3] = None  # which has nothing else
    pq.write_table(pa.table(rows), "labelled.parquet")
    Shelf.down = {f"/{row}.jpg" for row in range(9)}
    config = TrainConfig(
        catalog="labelled.parquet",
        text_columns=("title",),
        image_column="image",
        base_model=str(tiny_model),
        image_model=str(tiny_sight),
        storage="checkpoints",
    )
    with pytest.raises(TrainingError, match=r"pictures of \d+ of 60 rows could not be reached, more than 10%"):
        train(config)


def test_words_that_are_sure_need_no_picture(trained: tuple[Path, dict[str, float]], odd: Path) -> None:
    spec = read_spec(trained[0])
    assert spec.words
    sure = Tiers(trained[0], spec=replace(spec, words=replace(spec.words, alone_from=0.0)))
    labels = sure.label(pq.read_table(odd))
    status = labels.column("image_status").to_pylist()
    assert (status[0], status[3], status[4]) == (UNREAD, OK, None)


def test_labels_say_which_words_they_rest_on_whoever_answered(
    trained: tuple[Path, dict[str, float]], write: Callable[..., Path]
) -> None:
    rows, spec = shop(40, 3), read_spec(trained[0])
    rows["image"][1] = None
    assert spec.words
    table = pq.read_table(write("shop.parquet", **rows))
    alone = Tiers(trained[0], spec=replace(spec, words=replace(spec.words, alone_from=0.0)))
    middle = float(np.median(alone.label(table).column("confidence").to_numpy()))
    words = replace(spec.words, alone_from=middle)
    folder = shutil.copytree(trained[0], Path("model"))
    write_spec(folder, replace(spec, words=words, thresholds=(1.01,) * len(spec.thresholds or (0, 0))))
    config = LabelConfig(catalog="shop.parquet", output="labels", model=(str(folder),), explain=2, precision="fp32")
    label(config)
    before = {row["id"]: row for row in labels_of().to_pylist()}
    assert {row["tier"] for row in before.values()} == {"words", "both"}
    assert {row["image_status"] for row in before.values()} == {UNREAD, OK, MISSING} - (
        {MISSING} if before["P3-1"]["tier"] == "words" else set()
    )
    assert all(row["because"] is not None for row in before.values()), "all need review"
    assert any(row["because"] for row in before.values())
    write("shop.parquet", **{name: [*values, *shop(3, 4)[name]] for name, values in rows.items()})
    second = label(config)
    after = {row["id"]: row for row in labels_of().to_pylist()}
    assert second.cost.carried == 40
    assert {name: after[name] for name in before} == before
    # And one by one, with the parts of the picture where it was looked at.
    tiers = Tiers(folder)
    for row, (own,) in enumerate(Explainer.of(tiers).explain(table, tiers.published(table, 1).labels)):
        found = before[f"P3-{row}"]
        assert (own.category, own.tier) == (found["category"], found["tier"])
        assert bool(own.regions) == (found["image_status"] == OK)
        expected = [word.weight for word in own.strongest(2)]
        assert [one["weight"] for one in found["because"]] == pytest.approx(expected, abs=1e-2)


def test_an_image_column_must_hold_pictures(
    job: Callable[..., tuple[int, str, str]], write: Callable[..., Path]
) -> None:
    from conftest import refused

    catalog = write("shop.parquet", id=["1", "2"], title=["a", "b"], image=[1, 2], category_path=["A", "B"])
    refused(
        job("train", "--catalog", catalog, "--text-columns", "title", "--image-column", "image"),
        "'image' is int64",
        "--image-column",
    )
    refused(
        job("train", "--catalog", catalog, "--text-columns"),
        "--text-columns: name at least one column, or an --image-column",
    )
    refused(
        job(
            "train", "--catalog", catalog, "--text-columns", "title", "--image-column", "image", "--base-model", "none"
        ),
        "--base-model none: words alone do not see",
    )


def test_a_model_that_only_sees_labels_a_catalog(
    ray_session: None, tiny_sight: Path, write: Callable[..., Path], working_folder: Path
) -> None:
    import torch

    from cataloger.model.network import new_classifier, save_bundle
    from cataloger.model.sight import sight_of
    from cataloger.model.tiers import Tiers
    from cataloger.spec import Spec

    network = sight_of(str(tiny_sight))
    spec = Spec(("A", "B > C", "B > D"), (), 12, "mean", "none", picture=network.picture("photo"))
    torch.manual_seed(0)
    save_bundle(working_folder / "bundle", new_classifier(Path(), spec, network), Path(), spec)
    rows = shop(9, 6)
    photos = [*rows["image"], None, b"<html>", rows["image"][0]]
    catalog = write("shop.parquet", id=[str(row) for row in range(12)], photo=photos)
    result = label(
        LabelConfig(catalog=str(catalog), output="labels", model=("bundle",), max_reject_fraction=1, precision="fp32")
    )
    assert (result.labelled, result.cost.forwarded) == (10, 10)  # a broken one is asked, and its answer not used
    assert rejects_of() == {"9": "the picture is missing", "10": "the picture is broken"}
    published = labels_of().to_pandas().set_index("id")
    own = Tiers(working_folder / "bundle").label(pa.table({"photo": photos}))
    assert own.column("category").to_pylist()[:9] == [published.loc[str(row), "category"] for row in range(9)]
    assert published.loc["11", "text_hash"] == published.loc["0", "text_hash"]


@pytest.mark.parametrize("lists", [False, True])
def test_words_say_nothing_of_a_row_without_text(trained: tuple[Path, dict[str, float]], lists: bool) -> None:
    """Whatever their weight, the network's probabilities stay what they are."""
    import torch

    from cataloger.heads.base import head_of
    from cataloger.heads.ranked import Ranked
    from cataloger.spec import MANY_CATEGORIES, Words

    spec = replace(read_spec(trained[0]), words=Words(weight=0.7))
    if lists:
        spec = replace(spec, head=MANY_CATEGORIES, thresholds=(), words=Words(weight=0.7))
    head, logits = head_of(spec, "cpu"), torch.randn(2, len(spec.categories), generator=torch.manual_seed(0))
    ranked = Ranked.of(np.full((2, len(spec.categories)), 0.1, np.float32)).silent(np.array([True, False]))
    again = Ranked.from_arrow(ranked.to_arrow()).take(np.arange(2))
    joined = head.with_words(logits, again, Words(weight=0.7))
    assert torch.equal(joined[0], logits[0])
    assert not torch.allclose(joined[1], logits[1])


def test_a_unit_has_as_many_pictures_as_memory_has_room_for(write: Callable[..., Path]) -> None:
    """Wherever they lie: what they take is what they become."""
    from cataloger.data.catalog import open_catalog
    from cataloger.data.units import MAX_UNIT_BYTES, plan_units
    from cataloger.spec import Picture

    path = write("shop.parquet", id=range(5_000), image=["a.jpg"] * 5_000)
    catalog = open_catalog(str(path), "id", (), picture=Picture("image", 224))
    units = plan_units(catalog)
    assert sum(unit.rows for unit in units) == 5_000
    assert max(unit.rows for unit in units) * 3 * 224**2 <= MAX_UNIT_BYTES
    assert len(plan_units(open_catalog(str(path), "id", ()))) == 1
