"""How fast pictures are labelled, against the network alone on pixels that are ready, and against the recipe in Ray Data's
documentation; and how fast they are learned from, against the bare loop of forward, backward and step.

python benchmarks/images.py
"""

import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
import tyro
from mlflow import MlflowClient
from PIL import Image
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from cataloger.config import LabelConfig, SampleConfig, TrainConfig
from cataloger.data.album import TOKENS_PER_PICTURE
from cataloger.data.batching import pack
from cataloger.data.images import decode
from cataloger.data.inputs import input_of
from cataloger.data.sample import generate
from cataloger.labeling.job import label
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.predictor import Predictor
from cataloger.model.sight import EMBEDDED, sight_of
from cataloger.spec import Spec
from cataloger.training.job import train
from cataloger.training.tuning import parameter_groups
from yardsticks import report, seconds, workroom

BATCH = 32
REAL = Path(__file__).parents[2] / "shared" / "data" / "grocerystore.parquet"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 5_000
    """Pictures: of grocerystore, or drawn ones where it is not there."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        table = pictures(config.rows, room)
        bundle = make_bundle(room / "bundle")
        sample = table.slice(0, min(512, len(table)))
        forward = forward_rate(bundle, sample)
        decoding = len(sample) / seconds(lambda: decode_all(sample))
        took, results = [], []
        # The first job of all is for what is made once: it does not count.
        for rows in (64, len(table) // 2, len(table)):
            catalog, output = room / f"{rows}.parquet", tempfile.mkdtemp(dir=room)
            pq.write_table(table.slice(0, rows), catalog, row_group_size=1_000)
            about = LabelConfig(catalog=str(catalog), output=output, model=(str(bundle),), max_reject_fraction=1)
            took.append(seconds(lambda about=about: results.append(label(about))))  # type: ignore[misc]
        steady = (len(table) - len(table) // 2) / (took[2] - took[1])
        forward = (forward + forward_rate(bundle, sample)) / 2  # the machine may have changed its speed meanwhile
        by_recipe = recipe_rate(bundle, table.slice(0, 1_000), room)
        bare = bare_loop(bundle, sample)
        trained = training_rate(table.slice(0, 1_500), room)
        bare = (bare + bare_loop(bundle, sample)) / 2
    found = {
        "pictures": len(table),
        "decoded/s, one core": decoding,
        "forward pass alone, pictures/s": forward,
        "labelled/s, steady": steady,
        "of the forward pass": steady / forward,
        "whole job, s": took[2],
        "Ray Data's recipe, pictures/s": by_recipe,
        "labelled ÷ recipe": steady / by_recipe,
        "bare loop, pictures/s": bare,
        "trained, pictures/s": trained,
        "trained ÷ bare loop": trained / bare,
    }
    rows: list[dict[str, object]] = [{"what": what, "": value} for what, value in found.items()]
    report("images", "Pictures and EfficientNet-Lite0", rows)


def pictures(rows: int, room: Path) -> pa.Table:
    """Different ones, in a seeded order."""
    if REAL.exists():
        table = pq.read_table(REAL, columns=["image"])
    else:
        generate(SampleConfig(rows=rows, output=str(room / "sample"), images=True))
        table = pq.read_table(room / "sample", columns=["image"])
    column = table.column("image").combine_chunks().drop_null().unique()
    column = column.take(pa.array(np.random.default_rng(0).permutation(len(column))[:rows]))
    return pa.table({"id": pa.array(range(len(column))), "image": column})


def make_bundle(folder: Path) -> Path:
    """The bundled network with a fresh head for 81 categories."""
    sight = sight_of(EMBEDDED)
    spec = Spec(tuple(f"Shelf {n}" for n in range(81)), (), 64, "mean", "none", picture=sight.picture("image"))
    torch.manual_seed(0)
    save_bundle(folder, new_classifier(Path(), spec, sight), Path(), spec)
    return folder


def forward_rate(bundle: Path, table: pa.Table) -> float:
    """Pictures/s of the engine, whose batches are ready before the clock starts."""
    predictor = Predictor(bundle, "cpu", "auto")
    given = input_of(predictor.spec, bundle)
    encoded = given.encode(given.read(table).values)
    ready = [encoded.batch(rows) for rows in pack(encoded.costs, predictor.token_budget, predictor.row_budget)]

    def forward() -> None:
        with ThreadPoolExecutor(predictor.engine.streams) as pool:
            deque(pool.map(predictor.engine, ready), maxlen=0)

    forward()
    return len(encoded) / min(seconds(forward) for _ in range(3))


def decode_all(table: pa.Table) -> None:
    picture = sight_of(EMBEDDED).picture("image")
    for data in table.column("image").to_pylist():
        decode(data, picture)


def recipe_rate(bundle: Path, table: pa.Table, room: Path) -> float:
    """Pictures/s of read_images → map_batches(preprocess) → map_batches(model) → write_parquet, as the documentation has it, in its
    steady state: one run with half of the pictures, one with all. Preprocessing is what torchvision's transforms do, by Pillow."""
    took = []
    for rows in (len(table) // 2, len(table)):
        folder = room / f"recipe-{rows}"
        folder.mkdir()
        for row, data in enumerate(table.column("image").slice(0, rows).to_pylist()):
            (folder / f"{row}.jpg").write_bytes(data)

        def work(folder: Path = folder) -> None:
            images = ray.data.read_images(str(folder), mode="RGB")
            ready = images.map(preprocess)
            model = {"fn_constructor_kwargs": {"folder": str(bundle)}, "batch_size": 32}
            answered = ready.map_batches(Recipe, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1, **model)
            answered.write_parquet(str(folder / "labels"))

        took.append(seconds(work))
    return (len(table) - len(table) // 2) / (took[1] - took[0])


def preprocess(row: dict[str, Any]) -> dict[str, Any]:
    """The shorter side 256, the middle 224, values from 0 to 1: float32 [3, 224, 224]."""
    image = Image.fromarray(row["image"])
    share = 256 / min(image.size)
    image = image.resize((round(share * image.width), round(share * image.height)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    middle = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32).transpose(2, 0, 1)
    return {"image": middle / 255}


class Recipe:
    """The actor of the documentation's recipe."""

    def __init__(self, folder: str) -> None:
        torch.set_num_threads(2)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            logits = self.model(pixel_values=255 * torch.from_numpy(batch["image"])).logits
        return {"label": [self.model.config.id2label[int(best)] for best in logits.argmax(dim=1)]}


def bare_loop(bundle: Path, table: pa.Table) -> float:
    """Pictures/s of the plainest loop that trains the same: same precision, weights and optimiser, pixels that are ready."""
    sight = sight_of(EMBEDDED)
    spec = Spec(tuple(f"Shelf {n}" for n in range(81)), (), 64, "mean", "none", picture=sight.picture("image"))
    model = new_classifier(Path(), spec, sight).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, TrainConfig(text_columns=(), image_column="image")), fused=True
    )
    pixels = torch.from_numpy(np.stack([decode(data, sight.picture("image")) for data in table["image"].to_pylist()]))
    true = torch.arange(len(pixels)) % 81

    def step(start: int) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixel_values=pixels[start : start + BATCH]).logits
        functional.cross_entropy(logits.float(), true[start : start + BATCH]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for start in range(0, 4 * BATCH, BATCH):
        step(start)
    return len(pixels) / seconds(lambda: [step(start) for start in range(0, len(pixels), BATCH)])


def training_rate(table: pa.Table, room: Path) -> float:
    """Pictures/s between the first and the last losses that the job logged."""
    names = pa.array([f"Shelf {row % 81}" for row in range(len(table))])
    pq.write_table(table.append_column("category_path", names), room / "labelled.parquet", row_group_size=500)
    about: dict[str, Any] = {"text_columns": (), "image_column": "image", "level_weights": (), "precision": "bf16"}
    config = TrainConfig(
        **about, catalog=str(room / "labelled.parquet"), epochs=2, batch_size=BATCH, storage=str(room / "checkpoints")
    )
    history = MlflowClient().get_metric_history(train(config).run_id, "tokens_per_second")
    return float(np.median([metric.value for metric in history])) / (1 + TOKENS_PER_PICTURE)


if __name__ == "__main__":
    main()
