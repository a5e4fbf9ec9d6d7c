import numpy as np
import pytest

from cataloger.taxonomy import Taxonomy, parse_path, prefix


@pytest.mark.parametrize("path", ["A >  > B", " > A", "> A", "A > ", "A >", "", "  ", ">"])
def test_malformed_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"empty|separator"):
        parse_path(path)


def test_levels_are_split_at_the_separator_only() -> None:
    assert parse_path(" Fruit > Apple > Size>5 ") == ("Fruit", "Apple", "Size>5")


def test_label_order_is_that_of_the_sorted_paths() -> None:
    taxonomy = Taxonomy.from_paths(["B > x", "A > y", "A > x", "B > x"])
    assert taxonomy.categories == ("A > x", "A > y", "B > x")
    assert taxonomy.label_ids["B > x"] == 2


def test_groups_hold_the_categories_below_the_same_ancestor() -> None:
    taxonomy = Taxonomy.from_paths(["A", "A > x", "A > x > 1", "B > x > 1"])
    assert taxonomy.depth == 3
    top, middle, leaf = taxonomy.groups
    assert len(set(top)) == 2
    assert top[0] == top[1] == top[2] != top[3]
    assert middle[1] == middle[2]
    assert middle[0] != middle[1], "an inner category stands for itself below its level"
    assert len(set(leaf)) == 4
    np.testing.assert_array_equal(taxonomy.depths, [1, 2, 3, 3])


def test_prefix_of_a_short_path_is_the_path() -> None:
    assert prefix("A > B > C", 2) == "A > B"
    assert prefix("A", 2) == "A"
