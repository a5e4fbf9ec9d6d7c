"""What the entry points share: parse the flags, set up the log, call, and turn errors into one sentence and an exit code."""

import logging
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
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


def parse_one(configs: Mapping[str, type[Any]], about: str) -> Any:
    """The configuration of one of several commands of a job, by the first word of the command line."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command not in configs:
        each = "".join(f"\n  {name:<8}{config.__doc__}" for name, config in configs.items())
        helped = command in ("-h", "--help")
        problem = "" if helped and len(sys.argv) > 1 else f"name one of {', '.join(configs)}\n"
        print(
            f"{problem}usage: {Path(sys.argv[0]).name} COMMAND [--help] ...\n\n{about}\n{each}",
            file=sys.stderr if problem else sys.stdout,
        )
        sys.exit(2 if problem else 0)
    sys.argv[:2] = [f"{sys.argv[0]} {command}"]
    return parse(configs[command])


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
