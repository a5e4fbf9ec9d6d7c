"""Models that were registered before there was `model.pyfunc` name this module: MLflow finds it where this version is loaded already."""

from cataloger.model.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
