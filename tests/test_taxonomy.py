import numpy as np
import pytest

from cataloger.taxonomy import Taxonomy, parse_path, prefix


@pytest.mark.parametrize(
    "path", ["A >  > B", "A > > B", " > A", "> A", "A > ", "A >", "", "  ", ">", "A>B", "A >B", "A > Size>5"]
)
def test_malformed_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"empty|separator|without white space"):
        parse_path(path)


@pytest.mark.parametrize("separator", [" > ", "  >\t", "\u00a0>\u00a0", "\u3000> "])
def test_levels_are_split_whatever_white_space_is_around_the_separator(separator: str) -> None:
    assert parse_path(f" Fruit{separator}Red Apple{separator}5 ") == ("Fruit", "Red Apple", "5")


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


def test_each_step_of_an_answer_has_its_certainty_and_is_right_or_wrong() -> None:
    tree = Taxonomy.from_paths(["A", "A > x", "A > y", "B > z > q"])
    nan = np.nan
    levels = np.array([[0.9, nan, nan], [0.9, 0.6, nan], [0.8, 0.8, 0.8]], np.float32)
    predicted = np.array([0, 1, 3])
    certainty = tree.certainty(levels, np.array([0.3, 0.6, 0.8], np.float32), predicted)
    np.testing.assert_allclose(certainty, [[0.3, nan, nan], [0.9, 0.6, nan], [0.8, 0.8, 0.8]], rtol=1e-6)
    right = tree.right(np.array([1, 2, 3]), predicted)
    assert not right[0, 0], "somewhere below A is not A itself"
    assert right[1, :2].tolist() == [True, False]
    assert right[2].tolist() == [True, True, True]
    assert not tree.right(np.array([-1]), np.array([3])).any(), "an unknown category is never right"
