"""What the entry points share: parse the flags, set up the log, call, and turn errors into one sentence and an exit code."""

import logging
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from _flags import flat, nested
from cataloger.errors import CatalogerError

Config = TypeVar("Config")


def parse(config: type[Config], *markers: Any) -> Config:
    """The job's configuration from the command line; exits with 2 on a wrong flag, before anything heavy is imported."""
    if {"-h", "--help"} & set(sys.argv):
        # On wider terminals tyro sets the groups side by side: the common ones would not come first.
        os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, 120))
    conf = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, *markers)
    return flat(config, tyro.cli(nested(config), description=config.__doc__, config=conf))


def run(job: Callable[[], Any]) -> None:
    """Run a job. Exit code 0, or that of the CatalogerError it raised; 4 for any other error, with its traceback."""
    _set_up_log()
    # `ray job stop` and cron send SIGTERM: leave through `finally`, so that the MLflow run is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        job()
    except CatalogerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        # Not Python's 1: that says "not promoted".
        traceback.print_exc()
        sys.exit(4)


def _set_up_log() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("cataloger").setLevel(logging.INFO)
    # Chatter of libraries about themselves; warnings that concern the user's data are ours and are logged.
    warnings.filterwarnings("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
