"""One frozen dataclass per job: its fields are the job's flags, their docstrings the `--help` text.

`dataclasses.asdict(config)` is what MLflow gets. This module imports neither torch nor ray, so that `--help` is instant.
"""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["auto", "cls", "mean"]
Precision = Literal["auto", "fp32", "bf16"]
Metric = Literal["accuracy", "weighted-f1", "macro-f1", "tail-macro-f1", "hierarchical-f1", "coverage-at-95"]
LongTail = Literal["off", "focal", "class-balanced", "logit-adjusted", "sampling", "augmentation"]


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a BERT on a labelled catalog and register the model in MLflow."""

    catalog: str | None = None
    """Labelled Parquet: a file, a folder or an s3:// prefix; without it, a generated sample catalog."""
    unlabelled_catalog: str | None = None
    """Parquet without categories, such as the whole catalog, for --pretrain-epochs and --pseudo-labels."""
    eval_catalog: str | None = None
    """Labelled Parquet to validate on after each epoch; without it, a part of the catalog is held out by text hash."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] = ("title", "brand", "description")
    """Columns the model reads, joined in this order."""
    label_column: str = "category_path"
    """Column with the category path, its levels separated by ' > '; a column of lists of paths trains a multi-label model."""
    group_column: str | None = None
    """Column of products that belong together, such as variants: a group never falls on both sides of the split."""
    base_model: str = "minilm"
    """Model to start from: minilm (bundled), a Hugging Face hub name, or a local folder."""
    pooling: Pooling = "auto"
    """How token vectors become one vector; auto takes what the base model was trained with."""
    max_tokens: int = 64
    """Longer texts are cut to this many tokens, special tokens included."""
    epochs: int = 3
    """Passes over the training rows; training stops early when validation no longer improves."""
    patience: int = 2
    """Epochs without a better validation score before training stops."""
    batch_size: int = 32
    """Rows per optimiser step, summed over all workers."""
    learning_rate: float | None = None
    """Peak learning rate of the encoder, the new head gets ten times as much; by default 3e-4 x (384 / model width)^2."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, applied to matrices only."""
    warmup_fraction: float = 0.1
    """Share of training over which the learning rate rises; after that it falls linearly to zero."""
    validation_fraction: float = 0.1
    """Share of distinct texts held out for validation when there is no --eval-catalog."""
    test_fraction: float = 0.0
    """Share of distinct texts that training never sees; `evaluate.py --split test` scores just these."""
    test_start: float = 0.0
    """Which texts these are: 0, 0.2, 0.4, 0.6 and 0.8 give five disjoint fifths, for the models of `audit.py`."""
    target_precision: float = 0.95
    """Precision that a trusted label must have had on the validation rows, level by level; other labels are marked needs_review."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward pass; auto is bf16 where the chip has it."""
    fine_tune: str = "all"
    """What is trained: all, head, the number of layers below the head, or lora: small adapters that are merged in the end."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each encoder layer to the one below it."""
    dropout: float | None = None
    """Dropout in the network; by default that of the base model."""
    adversarial: float = 0.0
    """Size of the step against the model that each batch's word embeddings take for a second pass, with --fine-tune all; 0 is off."""
    average_decay: float = 0.0
    """Decay per step of the moving average of the weights that is kept in place of the last ones, such as 0.999; 0 is off."""
    long_tail: LongTail = "off"
    """What helps rare categories: another loss, or drawing their rows more often, with augmentation in altered words."""
    level_weights: tuple[float, ...] | Literal["auto"] = ()
    """How much each upper level of the tree counts in the loss, top level first, or one number for all; auto: by its errors on validation."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over other categories, near ones in the tree first."""
    pretrain_epochs: int = 0
    """Passes of masked-language-model training over all texts, labelled or not, before fine-tuning."""
    pseudo_labels: float = 0.0
    """Confidence from which on the model's own labels of unlabelled rows count as true from the second epoch on; 0 is off."""
    num_workers: str = "1"
    """DDP workers: one per GPU, or several sharing the CPUs; MIN:MAX starts with what there is and grows."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    seed: int = 0
    """Seed of the initial head, the row order and dropout."""
    checkpoint_minutes: float = 10.0
    """Time between checkpoints within an epoch; each epoch ends with one anyway."""
    storage: str = "checkpoints"
    """Folder or s3:// prefix for checkpoints; on several nodes one that all of them reach."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""
    model_name: str = "product-category"
    """Name under which the model is registered in MLflow."""
    sweep: str | None = None
    """YAML file with values to try, such as `learning_rate: [1e-4, 3e-4]`: all combinations are trained, the poor ones stopped
    early, each a nested run in MLflow, and the best one is registered."""


@dataclass(frozen=True)
class LabelConfig:
    """Label every row of a catalog and publish the labels as one snapshot."""

    catalog: str
    """Parquet to label: a file, a folder or an s3:// prefix."""
    output: str
    """Folder or s3:// prefix of the label snapshots; readers follow its _latest.json."""
    model: str = "models:/product-category@champion"
    """Model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle folder."""
    id_column: str = "id"
    """Column that identifies a product; copied to the labels as it is."""
    text_columns: tuple[str, ...] | None = None
    """Columns the model reads; by default those it was trained on."""
    alternatives: int = 3
    """How many runner-up categories to write for each row."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the chip has it."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    max_reject_fraction: float = 0.01
    """Share of rejected rows above which the labels are not published."""
    max_missing_fraction: float = 0.2
    """Share of the published products that may have no label tonight; more is held back."""
    max_changed_fraction: float = 0.1
    """Share of products that may change category from one night to the next with the same model; more is held back."""
    publish_anyway: bool = False
    """Publish labels that --max-missing-fraction or --max-changed-fraction would hold back, or that were rolled back by hand."""
    anew: bool = False
    """Label every row again: carry no label over from the published run, and don't take a finished run for an answer."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model on a labelled catalog and log metrics and plots to MLflow."""

    catalog: str
    """Labelled Parquet: a file, a folder or an s3:// prefix."""
    model: str = "models:/product-category@champion"
    """Model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle folder."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] | None = None
    """Columns the model reads; by default those it was trained on."""
    label_column: str = "category_path"
    """Column with the true category path, or list of paths."""
    split: Literal["all", "test"] = "all"
    """Rows to score: all, or only those that training left out by its --test-fraction."""
    predictions: str | None = None
    """Parquet file to write, one row per product: id, text, true_category, category, confidence, needs_review (true_categories and
    categories of a multi-label model). The MLflow run has it anyway."""
    slice_columns: tuple[str, ...] = ()
    """Columns, such as language or brand, by whose values `compare.py` breaks the scores down."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the chip has it."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""


@dataclass(frozen=True)
class AuditConfig:
    """Find rows of a labelled catalog whose category is probably wrong, worst first, with a better one."""

    catalog: str
    """Labelled Parquet: a file, a folder or an s3:// prefix."""
    models: tuple[str, ...] = ("models:/product-category@champion",)
    """Models, named as in `label.py`; each is asked about the rows that its --test-fraction kept from training."""
    output: str = "suspects.parquet"
    """Parquet file to write, one row per suspect."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] | None = None
    """Columns the model reads; by default those it was trained on."""
    label_column: str = "category_path"
    """Column with the category path to check."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the chip has it."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare models on the same rows, see what a change would do to the catalog, and promote the better one."""

    runs: tuple[str, ...]
    """Two or more, the first is compared with all others: aliases (champion challenger), models:/NAME/VERSION, run ids, or parts of ids and names of the newest 1,000 runs."""
    model_name: str = "product-category"
    """Registered model that plain aliases, and --rollback, refer to."""
    evaluate: str | None = None
    """Labelled Parquet to evaluate all of them on first; without it, their newest evaluations on the same rows are compared."""
    catalog: str | None = None
    """Catalog of which a sample is labelled by all of them: which products would change category?"""
    promote: bool = False
    """Give the alias champion, which must be named first, to the best challenger if it is better by --metric and on no guard
    significantly worse: accuracy, tail macro F1, calibration error, speed. Exit code 1 if it stays."""
    rollback: bool = False
    """Give the alias champion back to the version that had it before."""
    metric: Metric = "accuracy"
    """What a challenger must be better in."""
    max_slowdown: float = 1.5
    """How many times as long a promoted model may take for a text."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] | None = None
    """Columns of --evaluate and --catalog that the models read; by default those that each was trained on."""
    label_column: str = "category_path"
    """Column of --evaluate with the true category path, or list of paths."""
    split: Literal["all", "test"] = "all"
    """Rows of --evaluate to score: all, or only those that training left out by its --test-fraction."""
    slice_columns: tuple[str, ...] = ()
    """Columns of --evaluate, such as language or brand, by whose values the scores are broken down."""
    report: str = "comparison.html"
    """Page to write; the MLflow run has it as well."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""


@dataclass(frozen=True)
class SampleConfig:
    """Generate a catalog: three category levels, a long tail, typos, several languages, repeats."""

    rows: int = 5_000
    """Rows to generate."""
    output: str = "sample-catalog"
    """Folder or s3:// prefix to write to."""
    labelled: bool = False
    """Write the category_path column."""
    seed: int = 0
    """Rows are a function of seed and row number."""


@dataclass(frozen=True)
class PublishConfig:
    """List the runs of an output folder, publish another one, remove old ones."""

    output: str
    """Folder or s3:// prefix that label.py writes to."""
    run: str | None = None
    """Complete run to publish in place of the current one."""
    prune: int | None = None
    """Remove all but this many newest complete runs, and every unfinished one; never the published one."""


@dataclass(frozen=True)
class VerifyConfig:
    """Check the published run against its manifest and its catalog."""

    output: str
    """Folder or s3:// prefix that label.py writes to."""
