"""Work spread over the nodes of a cluster, and the errors that come back from there."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.data.exceptions
import ray.exceptions
import ray.util

from cataloger import errors
from cataloger.errors import ResourceError
from cataloger.infra.runtime import TASK_CPUS

# A unit takes a slow CPU up to an hour; when nothing ends for longer, the cluster is stuck.
STUCK_SECONDS = 2 * 3600
STUCK = f"nothing has moved for {STUCK_SECONDS // 3600} hours: no node has room for what is next; see `ray status`"

Item = TypeVar("Item")
Found = TypeVar("Found")


@contextmanager
def errors_of_tasks() -> Iterator[None]:
    """Raise again, as itself, the CatalogerError that a remote task met: of the original, Ray Data keeps the text only."""
    try:
        yield
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise ResourceError(STUCK) from error
    except ray.exceptions.RayError as error:
        found = re.findall(rf"^{re.escape(errors.__name__)}\.(\w+): (.+)$", str(error), re.MULTILINE)
        if not found:
            raise
        name, sentence = found[-1]
        raise getattr(errors, name)(sentence) from None


def each(items: Iterable[Item], work: Callable[[Item], Found], most: int | None = None) -> Iterator[Found]:
    """What `work` makes of each item, in their order, on the nodes of the cluster; few more are held than it has CPUs, or `most`.

    Raises the CatalogerError that a task met, and ResourceError where none of them moves.
    """
    # Also from within a trial of a sweep, whose own placement has no CPU; else where an item lies.
    anywhere = "SPREAD" if ray.util.get_current_placement_group() else "DEFAULT"
    task: Any = ray.remote(_call).options(num_cpus=TASK_CPUS, scheduling_strategy=anywhere)
    kept, ahead = ray.put(work), deque[Any]()
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    at_once = min(2 * cores, most or 2 * cores)
    with errors_of_tasks():
        for item in items:
            if len(ahead) == at_once:
                yield _result(ahead.popleft())
            ahead.append(task.remote(kept, item))
        while ahead:
            yield _result(ahead.popleft())


def _result(task: Any) -> Any:
    try:
        return ray.get(task, timeout=STUCK_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise ResourceError(STUCK) from error


def _call(work: Callable[[Item], Found], item: Item) -> Found:
    return work(item)
