"""One frozen dataclass per job: its fields are the job's flags, their docstrings the `--help` text; `jobs/_flags.py` groups them.

`dataclasses.asdict(config)` is what MLflow gets. This module imports neither torch nor ray, so that `--help` is instant.
"""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["auto", "cls", "mean"]
TrainingPrecision = Literal["auto", "fp32", "bf16"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
Metric = Literal[
    "accuracy",
    "weighted-f1",
    "macro-f1",
    "tail-macro-f1",
    "hierarchical-f1",
    "coverage-at-95",
    "value-f1",
    "span-f1",
    "speed",
]
Tiers = Literal["auto", "off"]
Augmentation = Literal["off", "light", "strong"]
LongTail = Literal["off", "focal", "class-balanced", "logit-adjusted", "sampling", "augmentation"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a model on a labelled catalog, of words and of a fine-tuned BERT, and register it in MLflow."""

    catalog: str | None = None
    """Labelled Parquet: a file, a folder or an s3:// prefix; without it, a generated sample catalog."""
    unlabelled_catalog: str | None = None
    """Parquet without categories, such as the whole catalog, for --pretrain-epochs and --pseudo-labels."""
    corrections: str | None = None
    """Folder of `review.py import`, or Parquet with `id`, `category_path` and the text columns: what people corrected. It wins over the
    catalog's category, and products that are not in the catalog are learnt from as well."""
    tree_map: str | None = None
    """Folder of an edited map of `migrate.py`: the catalog has the categories of the old tree, and the model learns those of the new one. Rows
    of categories that the map splits, or lets go, teach nothing."""
    eval_catalog: str | None = None
    """Labelled Parquet to validate on after each epoch; without it, on --validation-fraction of the catalog's texts."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] = ("title", "brand", "description")
    """Columns with the words that the model reads, joined in this order; without a name, it reads pictures alone."""
    image_column: str | None = None
    """Column with a picture of the product: its bytes, where it lies (a path, s3:// or http(s)://), or a struct of bytes and path. The
    model then sees as well as reads."""
    label_column: tuple[str, ...] = ("category_path",)
    """Column with the category path, its levels separated by ' > '; a column of lists of paths trains a multi-label model, and one of tags
    (lists of structs of field, start, end and name, or of name and value) one that finds them in the words. Several columns make one
    model with several answers, the first of which is the one that counts."""
    answer_weights: tuple[float, ...] = ()
    """Weight of each answer in the loss, in the order of --label-column; by default training learns how uncertain each is."""
    category_attributes: str = "auto"
    """Where categories and tags are both learnt, which names of tags a category may have: auto learns it from the training rows, off allows
    all, and a Parquet file with the columns category_path and name says it."""
    group_column: str | None = None
    """Column with the same value for products that belong together, such as variants; no split separates them."""
    base_model: str = "minilm"
    """Model to start from: minilm (bundled, English), e5 (many languages), a Hugging Face hub name, or a folder; none trains a linear model
    of words and characters alone, in seconds. models:/NAME@ALIAS, or a bundle folder, goes on from a trained model, and keeps what it
    knows of the categories that are still there."""
    keep_old: float | None = None
    """Where --base-model is a trained model: of the rows that it gets right already, the share that each epoch learns again, with what
    that model says of them. All others are learnt in each epoch."""
    image_model: str = "efficientnet-lite0"
    """Network that sees, with --image-column: efficientnet-lite0 (bundled), a Hugging Face hub name such as timm/resnet50.a1_in1k, or a
    local folder."""
    image_augmentation: Augmentation = "light"
    """How pictures change from epoch to epoch, so that few of them teach more: off, light (another crop, mirrored), or strong (colours
    and missing pieces as well)."""
    pooling: Pooling = "auto"
    """How the vectors of the tokens become one for the text; auto takes what the base model was trained with."""
    max_tokens: int = 64
    """Longer texts are cut to this many tokens, special tokens included."""
    epochs: int | None = None
    """Passes over the training rows; by default 10 for a thousand rows, 8 for ten thousand, 3 for a million. Training stops early when
    validation no longer improves."""
    patience: int = 2
    """Training stops after this many epochs without a better validation score."""
    batch_size: int | None = None
    """Rows per optimiser step, summed over all workers; by default 32 for few rows, up to 256 for many."""
    learning_rate: float | None = None
    """Peak learning rate of the encoder, that of the new head is ten times as high; by default
    3e-4 x (384 / model width)^2 x (batch size / 32)^0.5."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, applied to matrices only."""
    warmup_fraction: float = 0.1
    """Share of training over which the learning rate rises; after that it falls linearly to zero."""
    validation_fraction: float | None = None
    """Share of distinct texts held out for validation when there is no --eval-catalog, by default a tenth; of two million rows and
    more with one category, 100,000 rows or somewhat more; words alone learn from them all the same."""
    test_fraction: float = 0.0
    """Share of distinct texts that training never sees; `evaluate.py --split test` scores just these."""
    test_start: float = 0.0
    """Which texts --test-fraction keeps from training: of 0.2, the starts 0, 0.2, 0.4, 0.6 and 0.8 give five disjoint fifths, for the
    models of `audit.py`."""
    target_precision: float = 0.95
    """Precision that a category needs to be trusted, level by level, as rows that the model has not learnt from show it with 90%
    confidence; rows whose whole path is not trusted are marked needs_review."""
    tiers: Tiers = "auto"
    """auto lets words answer alone where validation certifies it; off has words and network answer together about every row."""
    tier_risk: float | None = None
    """Accuracy that tiers may cost at most, against asking words and network about every row, with 95% confidence. By default .002, and
    nine tenths of the labels that need no review without tiers must need none with them; a number of your own is all that counts."""
    tier_agreement: float | None = None
    """In place of --tier-risk: share of the rows answered by words alone that must have the same category otherwise, with 95%
    confidence."""
    fold_back: bool = False
    """After the last epoch learn once more, from the validation rows as well. A little better, and no row is left that could judge a model
    which is made of this one."""
    precision: TrainingPrecision = "auto"
    """Arithmetic of the forward and backward pass; auto is bf16 where the chip has it."""
    fine_tune: str = "all"
    """What is trained: all, head (the head alone), a number (the head and that many layers below it), or lora (small adapters, merged into
    the model at the end)."""
    layer_decay: float = 1.0
    """Learning rate of an encoder layer divided by that of the layer above it; 1 is off."""
    dropout: float | None = None
    """Dropout in the network; by default that of the base model."""
    adversarial: float | None = None
    """Adversarial training: each batch is learnt a second time, with the word embeddings moved by this much in the direction in which
    the loss rises fastest. By default 1 with --fine-tune all, which it needs; 0 is off, and twice as fast."""
    average_decay: float = 0.0
    """Keep a moving average of the weights in place of the last ones, with this decay per step, such as 0.999; 0 is off."""
    long_tail: LongTail = "off"
    """Help for rare categories: another loss (focal, class-balanced, logit-adjusted), or their rows drawn more often, as they are (sampling)
    or with changed words (augmentation)."""
    level_weights: tuple[float, ...] | Literal["auto"] | None = None
    """Weight in the loss of each level above the category itself, top level first, or one number for all; auto follows their errors on
    validation. By default 0.5 where products have one category."""
    group_balance: str | None = None
    """Column, such as language or brand, whose smaller groups of products count more in the loss, so that they get answers as good as
    those of larger ones."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over other categories, more of it over near ones in the tree; 0 is off."""
    pretrain_epochs: int = 0
    """Passes of masked-language-model training over all texts, labelled or not, before fine-tuning; 0 is off."""
    pseudo_labels: float = 0.0
    """From the second epoch on, take the model's own labels of unlabelled rows as true where its confidence is at least this; 0 is off."""
    num_workers: str = "1"
    """DDP workers: one per GPU, or several that share the CPUs; MIN:MAX starts with as many as fit and adds more when more fit."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    seed: int = 0
    """Seed of the initial head, the row order and dropout."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; each epoch ends with one anyway."""
    storage: str = "checkpoints"
    """Folder or s3:// prefix for checkpoints; on several nodes, one that all of them reach."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""
    model_name: str = "product-category"
    """Name under which the model is registered in MLflow."""
    sweep: str | None = None
    """YAML file with values to try, such as `learning_rate: [1e-4, 3e-4]`. Each combination is a nested run in MLflow, those that fall
    behind are stopped early, and the best is registered."""


@dataclass(frozen=True)
class LabelConfig:
    """Label every row of a catalog and publish the labels as one snapshot."""

    catalog: str
    """Parquet to label: a file, a folder or an s3:// prefix; or a table: delta://PATH[@VERSION], iceberg://CATALOG.NAMESPACE.TABLE[@SNAPSHOT]."""
    output: str
    """Folder or s3:// prefix for the labels; readers follow its _latest.json."""
    publish_to: str | None = None
    """Table that also gets the labels once they are published, in one transaction: delta://PATH, delta://s3://BUCKET/PATH, or
    iceberg://CATALOG.NAMESPACE.TABLE."""
    model: tuple[str, ...] = ("models:/product-category@champion",)
    """Model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle folder. Of several the mean of what their networks
    say counts, at the cost of all."""
    id_column: str = "id"
    """Column that identifies a product; copied to the labels as it is."""
    text_columns: tuple[str, ...] | None = None
    """Columns the model reads; by default those it was trained on."""
    image_column: str | None = None
    """Column with the pictures; by default the one that the model was trained on, if it sees."""
    alternatives: int = 3
    """How many runner-up categories to write for each row."""
    pins: str | None = None
    """Parquet with `id` and `category_path`: products whose category a person has chosen. It stands, whatever the model says."""
    rules: str | None = None
    """YAML file of rules: what holds of a product, and the category that it then has, or must not have."""
    explain: int = 0
    """Of labels that need review, how many of the words that speak most for the category to write; each such row is asked about again,
    up to 130 times."""
    tiers: Tiers = "auto"
    """auto lets the model's words answer alone what they are certified for; off asks words and network about every row."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto is int8 where the model has it and the chip is a CPU, else bf16 where the chip has it."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    max_reject_fraction: float = 0.01
    """Share of rows that are rejected, or whose picture cannot be reached, above which the labels are not published."""
    max_missing_fraction: float = 0.2
    """Share of the published products that may be without a label in this run; above it the run is held back."""
    max_changed_fraction: float = 0.1
    """Share of products that may have another category than in the published run, if the same model made it; above it the run is held back."""
    publish_anyway: bool = False
    """Publish labels that --max-missing-fraction or --max-changed-fraction would hold back, or that were rolled back by hand."""
    anew: bool = False
    """Label every row again, even if this run is complete, and carry no label over from the published run."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model on a labelled catalog and log metrics and plots to MLflow."""

    catalog: str
    """Labelled Parquet: a file, a folder or an s3:// prefix."""
    model: tuple[str, ...] = ("models:/product-category@champion",)
    """Model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle folder. Of several the mean of what their networks
    say counts, at the cost of all."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] | None = None
    """Columns the model reads; by default those it was trained on."""
    image_column: str | None = None
    """Column with the pictures; by default the one that the model was trained on, if it sees."""
    label_column: tuple[str, ...] = ("category_path",)
    """Column with the true category path, list of paths, or tags. Of a model of several answers, a column for each; without one, the
    column that the answer was learnt from is scored, where the catalog has it."""
    split: Literal["all", "test"] = "all"
    """Rows to score: all, or only those that training left out by its --test-fraction."""
    predictions: str | None = None
    """Parquet file to write, one row per product: id, text, true_category, category, confidence, needs_review (true_categories and
    categories of a multi-label model). The MLflow run has it anyway."""
    slice_columns: tuple[str, ...] = ()
    """Columns, such as language or brand, by whose values `compare.py` breaks the scores down."""
    group_columns: tuple[str, ...] = ()
    """Columns, such as brand, language or seller, whose groups of products should get equally good answers: a page says where they do not."""
    groups_report: str = "groups.html"
    """HTML page to write, with --group-columns; the MLflow run has it as well."""
    tiers: Tiers = "auto"
    """auto lets the model's words answer alone what they are certified for; off asks words and network about every row."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto is int8 where the model has it and the chip is a CPU, else bf16 where the chip has it."""
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
    corrections: str | None = None
    """Folder of `review.py import`: what people have looked at is no suspect."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] | None = None
    """Columns the model reads; by default those it was trained on."""
    image_column: str | None = None
    """Column with the pictures; by default the one that the model was trained on, if it sees."""
    label_column: str = "category_path"
    """Column with the category path to check."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto is int8 where the model has it and the chip is a CPU, else bf16 where the chip has it."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare models on the same rows, see what a change would do to the catalog, and promote the better one."""

    runs: tuple[str, ...]
    """Two or more models; the first is compared with each of the others. Each is champion, challenger, models:/NAME/VERSION, a bundle
    folder, a run's id, or a part of the id or name of one of the newest 1,000 runs."""
    model_name: str = "product-category"
    """Registered model that champion, challenger and --rollback refer to."""
    evaluate: str | None = None
    """Labelled Parquet to evaluate all models on first; without it, their newest evaluations on the same rows are compared."""
    catalog: str | None = None
    """Parquet of which all models label a sample, to see which products would change category."""
    promote: bool = False
    """Move the alias champion to the best challenger, if that is better in --metric, not significantly worse in accuracy, tail macro
    F1 and calibration error, and within --max-slowdown. Name the champion first. Exit code 1 if the alias stays."""
    rollback: bool = False
    """Give the alias champion back to the version that had it before."""
    metric: Metric = "accuracy"
    """What a challenger must be better in to be promoted: a score, or speed, for models that jobs/compress.py made."""
    max_slowdown: float = 1.5
    """How many times the champion's time per text a promoted model may take."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] | None = None
    """Columns of --evaluate and --catalog that the models read; by default those that each was trained on."""
    image_column: str | None = None
    """Column of --evaluate and --catalog with the pictures, for the models that see; by default the one that each was trained on."""
    label_column: tuple[str, ...] = ("category_path",)
    """Column of --evaluate with the true category path, list of paths, or tags, for each answer of the models."""
    split: Literal["all", "test"] = "all"
    """Rows of --evaluate to score: all, or only those that training left out by its --test-fraction."""
    slice_columns: tuple[str, ...] = ()
    """Columns of --evaluate, such as language or brand, by whose values the scores are broken down."""
    protect: tuple[str, ...] = ()
    """Columns, such as brand or language, for --promote: no group of products that has a value in common may get significantly worse answers.
    They are columns of --evaluate, or --group-columns or --slice-columns of the evaluations that are compared."""
    report: str = "comparison.html"
    """HTML page to write; the MLflow run has it as well."""
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
    images: bool = False
    """Write a column `image` with a simple drawn picture of each product; a few are missing or broken."""
    seed: int = 0
    """The same seed gives the same rows."""


@dataclass(frozen=True)
class PublishConfig:
    """List the runs of an output folder, publish another one, remove old ones."""

    output: str
    """Folder or s3:// prefix that label.py writes to."""
    run: str | None = None
    """Complete run to publish in place of the one that is published now."""
    prune: int | None = None
    """Keep this many of the newest complete runs and remove all others, unfinished ones too; the published run always stays."""


@dataclass(frozen=True)
class VerifyConfig:
    """Check the published run against its manifest and its catalog."""

    output: str
    """Folder or s3:// prefix that label.py writes to."""


@dataclass(frozen=True)
class CompressConfig:
    """Make a cheaper model out of one or several, and register it in MLflow as challenger.

    Without --layers, --prune-vocabulary and --precision it does what pays on this machine: a smaller vocabulary, and eight bits where they
    are faster.
    """

    catalog: str
    """Parquet with the texts that the model will read; with categories, which --layers needs, the new model is scored against them."""
    model: tuple[str, ...] = ("models:/product-category@champion",)
    """Model to make cheaper: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle folder. Several are teachers of one
    model, which has the layers of the first."""
    average_models: tuple[str, ...] = ()
    """In place of --model: models that were trained from the same base model, whose weights are averaged."""
    layers: int | None = None
    """Train a student of so many of the model's layers to answer as it does, and as the categories of --catalog say."""
    prune_vocabulary: bool = False
    """Keep the tokens that --catalog's texts are made of, and some of the most frequent ones."""
    precision: Literal["int8"] | None = None
    """int8 has the network's linear maps in whole numbers of eight bits, for CPUs with OpenVINO."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] | None = None
    """Columns the model reads; by default those it was trained on."""
    image_column: str | None = None
    """Column with the pictures; by default the one that the model was trained on, if it sees."""
    label_column: str = "category_path"
    """Column with the category path, or list of paths; where the catalog has none, only the agreement with the model is measured."""
    eval_catalog: str | None = None
    """Labelled Parquet to judge the new model by, and to fit its thresholds on, as the model's training had it; without it, rows of --catalog
    that the training held out."""
    epochs: int | None = None
    """Passes over the rows for --layers; by default as many as train.py chooses."""
    target_precision: float = 0.95
    """Precision that a category needs to be trusted, where its thresholds are fitted anew: with --layers, --average-models or several models."""
    tiers: Tiers = "auto"
    """auto lets words answer alone where validation certifies it, off has words and network answer together about every row; for the same
    models."""
    tier_risk: float | None = None
    """Accuracy that tiers may cost at most, as train.py has it; with --layers, --average-models or several models."""
    num_workers: str = "1"
    """DDP workers for --layers: one per GPU, or several that share the CPUs."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
    seed: int = 0
    """Seed of the row order and dropout."""
    storage: str = "checkpoints"
    """Folder or s3:// prefix for what the model answered, and for checkpoints; on several nodes, one that all of them reach."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""
    model_name: str = "product-category"
    """Name under which the new model is registered in MLflow."""


@dataclass(frozen=True)
class ExplainConfig:
    """Show why products have their category: which words and which parts of the picture speak for it."""

    model: str = "models:/product-category@champion"
    """Model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle folder."""
    catalog: str | None = None
    """Parquet with the products: a file, a folder or an s3:// prefix."""
    ids: tuple[str, ...] = ()
    """Products of --catalog to explain, by their id."""
    text: str | None = None
    """In place of --catalog and --ids: a text to explain, as if it stood in the first of the model's columns."""
    neighbours: str | None = None
    """Labelled Parquet in which to look for the products that are most like each one."""
    output: str = "explanation.html"
    """HTML page to write."""
    id_column: str = "id"
    """Column that identifies a product."""
    text_columns: tuple[str, ...] | None = None
    """Columns the model reads; by default those it was trained on."""
    image_column: str | None = None
    """Column with the pictures; by default the one that the model was trained on, if it sees."""
    label_column: str = "category_path"
    """Column of --neighbours with the category path, or list of paths."""
    tiers: Tiers = "auto"
    """auto explains the answer of whoever gives it, words alone or both; off that of words and network together."""


@dataclass(frozen=True)
class ExtendConfig:
    """Teach a model further categories, by their names and a few examples, without a training, and register it in MLflow as challenger."""

    categories: str
    """Parquet with `category_path` and the model's text columns: a row for each example of a new category, or one without any text. A column
    `description` says more of a category."""
    catalog: str
    """Labelled Parquet with products of the categories that the model knows, best the one that it was trained on: new categories are told
    from them, and take next to none of them."""
    model: str = "models:/product-category@champion"
    """Model to extend: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle folder."""
    id_column: str = "id"
    """Column of --catalog that identifies a product."""
    label_column: str = "category_path"
    """Column of --catalog with the category path."""
    experiment: str = "cataloger"
    """MLflow experiment of the run."""
    model_name: str = "product-category"
    """Name under which the new model is registered in MLflow."""


@dataclass(frozen=True)
class MigrateConfig:
    """Move published labels to another tree of categories: propose a map, which people edit, and publish the labels by it."""

    labels: str
    """Folder or s3:// prefix that label.py wrote to; the published labels are moved."""
    to: str | None = None
    """Parquet with the new tree: `category_path`, or `id`, `parent_id` and `name`; `description` says more of a category."""
    examples: str | None = None
    """Parquet with a few products and their category in the new tree."""
    apply: str | None = None
    """Folder of a map: publish the labels by it."""
    output: str = "map"
    """Folder or s3:// prefix to write to: the map, or with --apply the new labels."""
    catalog: str | None = None
    """Parquet that the labels were made from; by default the one that the run names."""
    model: tuple[str, ...] = ()
    """Model that made the labels; by default the one that the run names."""
    text_columns: tuple[str, ...] | None = None
    """Columns that are read of each product; by default those that the model reads."""
    id_column: str = "id"
    """Column of --examples that identifies a product."""
    label_column: str = "category_path"
    """Column of --examples with the new category."""
    base_model: str = "minilm"
    """Base model that says what names and products mean: minilm (bundled, English), e5 (many languages), a hub name, or a folder."""


@dataclass(frozen=True)
class ExportConfig:
    """Choose the products that are worth a person's minute, and write them for a review tool."""

    labels: str
    """Folder or s3:// prefix that label.py wrote to; the published labels are asked about."""
    catalog: str
    """Parquet that they were made from."""
    output: str = "queue"
    """Folder or s3:// prefix to write to."""
    budget: int = 500
    """So many products are asked about."""
    format: Literal["labelstudio", "argilla", "parquet"] = "parquet"
    """What people use: Label Studio, Argilla, or a table whose column `answer` they fill."""
    weight_column: str | None = None
    """Column with numbers, such as views or revenue: a product that has twice as many is worth asking about twice as much."""
    model: tuple[str, ...] = ()
    """Model that made the labels; by default the one that the run names."""
    text_columns: tuple[str, ...] | None = None
    """Columns that are shown; by default those that the model reads."""
    image_column: str | None = None
    """Column that says where each picture lies, to be shown."""


@dataclass(frozen=True)
class ImportConfig:
    """Take people's answers as corrections: pins for label.py, and rows for train.py."""

    answers: str
    """What the tool exported: JSON of Label Studio, records.json of Argilla, or the filled table."""
    queue: str = "queue"
    """Folder or s3:// prefix with the questions."""
    output: str = "corrections"
    """Folder or s3:// prefix of corrections to add to."""


@dataclass(frozen=True)
class ServeConfig:
    """Answer over HTTP, product by product, with what label.py would publish."""

    model: str = "models:/product-category@champion"
    """Model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle folder. An alias is followed: a
    promoted version answers within a minute."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is for everybody who can reach this machine."""
    port: int = 8000
    """Port to listen at."""
    token_file: str | None = None
    """File with a token; whoever asks must send it. Without one everybody who reaches the address is answered."""
    id_column: str = "id"
    """Field that identifies a product; copied to the answer as it is."""
    alternatives: int = 3
    """How many runner-up categories to give for each product."""
    pins: str | None = None
    """Parquet with `id` and `category_path`: products whose category a person has chosen, as for label.py."""
    rules: str | None = None
    """YAML file of rules, as for label.py."""
    image_sources: tuple[str, ...] = ()
    """Where pictures may be fetched from: beginnings of addresses such as https://images.shop.example/ or s3://shop/images/. Without any,
    pictures are sent in base64."""
    replicas: str = "1"
    """How many processes answer: N, or MIN:MAX, as many as the load wants."""
    max_wait_ms: float = 5.0
    """How long a request may wait for others to be answered with, while the model is busy."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto is int8 where the model has it and the chip is a CPU, else bf16 where the chip has it."""
    use_gpu: bool = False
    """Insist on GPUs: fail at once when the cluster has none (by default GPUs are used where there are any)."""
