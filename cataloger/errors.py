"""Every error a user can cause or mend. Anything else is a bug and propagates with its traceback.

CatalogerError            exit code 2
├── ConfigError           a flag, or a combination of flags, that cannot work
├── CatalogError          the input Parquet is not what the flags say
├── ModelError            a base model or bundle that cannot be found or read
├── StorageError          a folder or bucket that cannot be read or written
│   └── ConflictError     somebody else wrote there meanwhile
├── TrackingError         the MLflow server, a run, a model name or an alias
├── ResourceError         the cluster cannot hold what was asked for
├── TrainingError         a training run that cannot come to a good end
│   └── CheckpointError   what an earlier command left cannot be gone on with
├── PublishError          exit code 3: the new labels are not fit to be published
└── DeliveryError         exit code 5: the labels are published, and a table that follows them does not have them yet
"""


class CatalogerError(Exception):
    """One clear sentence: what was wrong, where, and what to do."""

    exit_code = 2


class ConfigError(CatalogerError):
    """A flag, or a combination of flags, that cannot work."""


class CatalogError(CatalogerError):
    """The input Parquet is not what the flags say."""


class ModelError(CatalogerError):
    """A base model or model bundle that cannot be found or read."""


class StorageError(CatalogerError):
    """A folder or bucket that cannot be read or written."""


class ConflictError(StorageError):
    """Somebody else wrote there meanwhile."""


class TrackingError(CatalogerError):
    """The MLflow server, a run, a model name or an alias."""


class ResourceError(CatalogerError):
    """The cluster cannot hold what was asked for."""


class TrainingError(CatalogerError):
    """A training run that cannot come to a good end, such as a loss that is no number."""


class CheckpointError(TrainingError):
    """What an earlier command left of a training cannot be gone on with."""


class PublishError(CatalogerError):
    """The new labels are not fit to be published; readers keep the published ones."""

    exit_code = 3


class DeliveryError(CatalogerError):
    """The labels are published, and the table that follows them does not have them yet; the same command brings them."""

    exit_code = 5
