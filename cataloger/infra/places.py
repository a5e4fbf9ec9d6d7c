"""Will what a job writes still be there when it has ended, and do all nodes of the cluster see it?"""

import os
import secrets
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cataloger.errors import ConfigError, ResourceError
from cataloger.infra import runtime
from cataloger.infra.storage import PROBE, Location

MOUNTS = Path("/proc/mounts")
NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "ceph",
    "gluster",
    "beegfs",
    "gpfs",
    "afs",
    "9p",
    "virtiofs",
    "wekafs",
)


def place(uri: str, flag: str) -> str:
    """The same place, unless it is a relative path under a submitted job, whose working folder goes when its code changes.

    Raises ConfigError.
    """
    if "://" not in uri and not os.path.isabs(os.path.expanduser(uri)) and is_submitted():
        raise ConfigError(
            f"{flag} {uri}: lies in the working folder of a submitted job, which another version of the code does not see and Ray "
            "removes; name an s3:// prefix, or the absolute path of a folder that all nodes share"
        )
    return uri


def is_submitted() -> bool:
    """Whether this process works in a folder that `ray job submit --working-dir` made."""
    return "working_dir_files" in Path.cwd().parts


def check_shared(location: Location, flag: str) -> None:
    """Refuse a local folder that some node of the cluster does not have. Needs a running Ray. Raises ResourceError."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    grows = bool(runtime.can_grow_to())
    if not location.is_local or (len(nodes) == 1 and not grows) or _is_network(Path(location.path)):
        return
    why = "and nodes that the cluster may yet start do not have it"
    if not grows:
        probe = location / f"{PROBE}{secrets.token_hex(8)}"
        probe.write(b"cataloger")
        look = ray.remote(os.path.exists)
        asked = [
            look.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                probe.path
            )
            for node in nodes
        ]
        blind = asked and ray.get(asked).count(False)
        probe.delete()
        if not blind:
            return
        why = f"and {blind} of the cluster's {len(nodes)} nodes do not see what is written there"
    raise ResourceError(
        f"{flag} {location}: is a folder of this machine, {why}; name an s3:// prefix, or a folder that all nodes share"
    )


def _is_network(path: Path) -> bool:
    """Whether the path lies on a file system that machines share, by the kernel's table of mounts."""
    try:
        mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return False
    holding = [(point, kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    # Of several at one point the last one is seen, such as an NFS that was mounted when somebody looked.
    _, kind = max(reversed(holding), key=lambda mount: len(mount[0]), default=("", ""))
    # What a user's own program mounts is as good as always remote; not so the root of a container without privileges.
    own = kind.startswith("fuse.") and "overlay" not in kind
    return own or kind.startswith(NETWORK_FILE_SYSTEMS)
