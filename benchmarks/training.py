"""Fine-tuning against its ceiling, the bare loop of forward, backward and step, and against transformers.Trainer. The same rows.

python benchmarks/training.py                  # on the CPU
python benchmarks/training.py --device cuda    # on one GPU
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from mlflow import MlflowClient
from torch.nn import functional as F
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from cataloger.config import SampleConfig, TrainConfig
from cataloger.data.batching import Tokens
from cataloger.data.sample import generate
from cataloger.data.text import compose
from cataloger.model.network import new_classifier
from cataloger.model.pretrained import base_model_folder
from cataloger.spec import Spec
from cataloger.taxonomy import Taxonomy
from cataloger.training.job import train
from cataloger.training.order import Batches, Shuffled
from cataloger.training.tuning import parameter_groups
from yardsticks import report, tokens_of, workroom

REAL = Path(__file__).parents[2] / "shared" / "data" / "mwpd2020" / "train.parquet"
COLUMNS = ("title", "shop_category", "description")
BATCH, MAX_TOKENS = 32, 64
# Steps that no clock counts: caches and thread pools are warm after them.
WARM = 20


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 4_000
    """Labelled rows, one epoch."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the loops run that are not cataloger's; that takes a GPU where there is one."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        table, columns = catalog(config.rows, room)
        pq.write_table(table, room / "catalog.parquet")
        base = base_model_folder("minilm")
        texts = compose(table, columns, MAX_TOKENS)
        taxonomy = Taxonomy.from_paths(table.column("category_path").to_pylist())
        labels = np.array([taxonomy.label_ids[path] for path in table.column("category_path").to_pylist()])
        tokens = tokens_of(base, texts, MAX_TOKENS)
        mean = float(tokens.lengths.mean())
        rates = {"bare loop: forward, backward, step": bare_loop(base, taxonomy, tokens, labels, config.device)}
        rates["cataloger through Ray Train, one worker"] = through_ray(room, columns, "1") * mean
        if config.device == "cpu":
            rates["cataloger through Ray Train, two workers on the same cores"] = through_ray(room, columns, "2") * mean
        again = bare_loop(base, taxonomy, tokens, labels, config.device)
        ceiling, ours = list(rates)[:2]
        print(f"bare loop before and after: {rates[ceiling]:,.0f}, {again:,.0f} tokens/s")
        rates[ceiling] = (rates[ceiling] + again) / 2
        for name, bf16 in (("as it comes", False), ("with bf16", True)):
            rate = with_trainer(base, taxonomy, texts, labels, room, bf16, config.device)
            rates[f"transformers.Trainer, {name}"] = rate * mean
        rows: list[dict[str, object]] = [
            {"way": way, "tokens/s": rate, "÷ bare loop": rate / rates[ceiling], "cataloger ÷ this": rates[ours] / rate}
            for way, rate in rates.items()
        ]
        title = f"Fine-tuning MiniLM on {len(table):,} products of {mean:.0f} tokens, batches of {BATCH}"
        report("training" if config.device == "cpu" else "training-gpu", title, rows, ("way", "tokens/s"))


def catalog(rows: int, room: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """(rows, text columns): real products, or generated ones where there are none."""
    if REAL.exists():
        return pq.read_table(REAL, columns=["id", *COLUMNS, "category_path"]).slice(0, rows), COLUMNS
    generate(SampleConfig(rows=rows, output=str(room / "sample"), labelled=True))
    return pq.read_table(room / "sample"), ("title", "brand", "description")


def spec_of(taxonomy: Taxonomy, pooling: str) -> Spec:
    return Spec(taxonomy.categories, ("title",), 64, pooling, "none")


def bare_loop(base: Path, taxonomy: Taxonomy, tokens: Tokens, labels: np.ndarray, device: str) -> float:
    """Tokens/s of the plainest loop that trains the same: same batches, precision and optimiser, nothing is reported or kept."""
    torch.manual_seed(0)
    model = new_classifier(base, spec_of(taxonomy, "mean")).train().to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainConfig()), fused=True)
    rng = np.random.default_rng(0)
    batches = [rows for rows, _ in Batches(tokens, Shuffled(len(labels), rng), BATCH, 0).since(0)]
    ready = [(*map(torch.from_numpy, tokens.batch(rows).values()), torch.from_numpy(labels[rows])) for rows in batches]

    def step(*batch: torch.Tensor) -> None:
        ids, mask, true = (tensor.to(device, non_blocking=True) for tensor in batch)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=mask).logits
        F.cross_entropy(logits.float(), true).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for batch in ready[:WARM]:
        step(*batch)
    wait()
    started = time.perf_counter()
    for batch in ready[WARM:]:
        step(*batch)
    wait()
    return sum(int(tokens.lengths[rows].sum()) for rows in batches[WARM:]) / (time.perf_counter() - started)


def through_ray(room: Path, columns: tuple[str, ...], workers: str) -> float:
    """Rows/s between the first and the last losses that the job logged."""
    config = TrainConfig(
        catalog=str(room / "catalog.parquet"),
        text_columns=columns,
        max_tokens=MAX_TOKENS,
        epochs=1,
        batch_size=BATCH,
        adversarial=0.0,
        level_weights=(),
        precision="bf16",
        num_workers=workers,
        storage=str(room / f"checkpoints-{workers}"),
        model_name="benchmark",
    )
    history = MlflowClient().get_metric_history(train(config).run_id, "train_loss")
    posts = sorted(dict(sorted((metric.timestamp, metric.step) for metric in history)).items())
    (first, start), *_, (last, stop), _ = posts  # the last batches may be smaller
    return (stop - start) * BATCH / (last - first) * 1_000


def with_trainer(
    base: Path, taxonomy: Taxonomy, texts: pa.Array, labels: np.ndarray, room: Path, bf16: bool, device: str
) -> float:
    """Rows/s of transformers.Trainer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows: list[dict[str, Any]] = [
        {**tokenizer(text, truncation=True, max_length=MAX_TOKENS), "label": int(label)}
        for text, label in zip(texts.to_pylist(), labels, strict=True)
    ]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    arguments = TrainingArguments(
        output_dir=str(room / "trainer"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        bf16=bf16,
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    model = new_classifier(base, spec_of(taxonomy, "cls"))
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer))  # type: ignore[arg-type]
    return float(trainer.train().metrics["train_samples_per_second"])


if __name__ == "__main__":
    main()
