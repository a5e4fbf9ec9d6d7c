"""What an edited map of one tree to another says of categories that go somewhere as a whole."""

from cataloger.curation.tables import read_table
from cataloger.errors import CatalogError
from cataloger.infra.storage import locate

MAP = "map.parquet"


def read_moves(uri: str) -> dict[str, str]:
    """The new category of each old one, of the folder of a map, or its table; those that are split or gone are not in it. Raises CatalogError."""
    table = read_table(
        f"{uri.rstrip('/')}/{MAP}" if not locate(uri).info().is_file else uri, "--tree-map", ("old", "target")
    )
    found = {
        old: target for old, target in zip(*(column.to_pylist() for column in table.columns), strict=True) if target
    }
    if not found:
        raise CatalogError(f"--tree-map {uri}: no category has a target; name the --output of jobs/migrate.py")
    return found
