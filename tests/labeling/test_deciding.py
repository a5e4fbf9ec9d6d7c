import subprocess
import sys

from cataloger.infra.deciding import CURATING, MODULES, _meaning
from conftest import ROOT

# Loaded on the way from a row to its label, and without a say in it: where it is kept, what it cost.
NOT_DECIDING = {
    "config",
    "curation.known",
    "curation.logic",
    "data.seen",
    "errors",
    "heads.losses",
    "infra.alive",
    "infra.deciding",
    "infra.node_cache",
    "infra.runtime",
    "infra.spread",
    "infra.storage",
    "infra.stores",
    "labeling.cost",
    "lakes.tables",
    "labeling.packed",
    "model.e5",
    "model.pretrained",
    "model.sight",
    "publishing.parts",
    "publishing.sketches",
    "publishing.snapshot",
    "strict",
}


def test_every_module_on_the_way_of_a_row_decides_or_is_known_not_to() -> None:
    program = (
        "import sys, cataloger.model.predictor, cataloger.model.network, cataloger.labeling.stream\n"
        "found = {name: module for name, module in sys.modules.items() if name.startswith('cataloger.')}\n"
        "print(*[name.partition('.')[2] for name, module in found.items() if not hasattr(module, '__path__')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {*MODULES, *CURATING, *NOT_DECIDING}


def test_comments_and_docstrings_do_not_count() -> None:
    plain = _meaning("def f(x):\n    return x + 1\n")
    assert _meaning('"""A module."""\ndef f(x):\n    """Adds."""\n    # one\n    return (x + 1)\n') == plain
    assert _meaning("def f(x):\n    return x + 2\n") != plain
