import subprocess
import sys

from cataloger.deciding import MODULES, _meaning
from conftest import ROOT

# Loaded on the way from a row to its label, and without a say in it: where it is kept, what it cost.
NOT_DECIDING = {
    "alive",
    "config",
    "deciding",
    "effort",
    "errors",
    "ids",
    "node_cache",
    "runtime",
    "s3",
    "seen",
    "snapshot",
    "storage",
    "strict",
}


def test_every_module_on_the_way_of_a_row_decides_or_is_known_not_to() -> None:
    program = (
        "import sys, cataloger.model, cataloger.network, cataloger.stream\n"
        "print(*[name.split('.')[1] for name in sys.modules if name.startswith('cataloger.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {*MODULES, *NOT_DECIDING}


def test_comments_and_docstrings_do_not_count() -> None:
    plain = _meaning("def f(x):\n    return x + 1\n")
    assert _meaning('"""A module."""\ndef f(x):\n    """Adds."""\n    # one\n    return (x + 1)\n') == plain
    assert _meaning("def f(x):\n    return x + 2\n") != plain
