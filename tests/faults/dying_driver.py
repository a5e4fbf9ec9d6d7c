"""jobs/label.py that kills itself with SIGKILL: `dying_driver.py MOMENT flags…`.

MOMENT is the name of a function of cataloger at whose call it dies, such as `labeling.job.plan_units`, or `parts=N`: after
that many finished units.
"""

import importlib
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


moment = sys.argv.pop(1)
if moment.startswith("parts="):
    from cataloger.labeling import job as labeling

    stream, wanted = labeling.label_units, int(moment.removeprefix("parts="))

    def dying_stream(*arguments: Any) -> Iterator[Any]:
        for number, item in enumerate(stream(*arguments)):
            if number == wanted:
                die()
            yield item

    labeling.label_units = dying_stream
else:
    module, _, function = moment.rpartition(".")
    found = importlib.import_module(f"cataloger.{module}")
    assert callable(getattr(found, function))
    setattr(found, function, die)
jobs = Path(__file__).parents[2] / "jobs"
sys.path.insert(0, str(jobs))
sys.argv[0] = str(jobs / "label.py")
runpy.run_path(sys.argv[0], run_name="__main__")
