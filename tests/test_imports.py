"""What must stay light: tasks that read and tokenize start in a second, served models bring neither Ray nor what trains."""

import subprocess
import sys

import pytest

from conftest import ROOT


def loaded(module: str) -> set[str]:
    """The packages that importing a module brings along."""
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["cataloger.labeling.stream", "cataloger.labeling.writing", "cataloger.training.rows", "cataloger.heads.columns"],
)
def test_tasks_load_no_torch(module: str) -> None:
    assert not loaded(module) & {"torch", "transformers", "mlflow", "sklearn", "matplotlib"}


def test_a_predictor_loads_nothing_that_only_trains_or_only_scores() -> None:
    assert not loaded("cataloger.model.predictor") & {"ray", "mlflow", "sklearn", "pandas", "matplotlib"}


@pytest.mark.parametrize(
    "package",
    [
        "infra",
        "data",
        "heads",
        "model",
        "publishing",
        "labeling",
        "training",
        "compression",
        "evaluation",
        "curation",
        "explaining",
        "live",
    ],
)
def test_a_package_is_its_promise_and_imports_nothing(package: str) -> None:
    source = (ROOT / "cataloger" / package / "__init__.py").read_text()
    assert source.startswith('"""')
    assert source.count("\n") == 1, "one sentence"
