from cataloger.infra.plots import confused_pairs, short_names


def test_categories_that_end_alike_are_told_apart() -> None:
    alike = ["Women > Tops > Jackets", "Men > Tops > Jackets"]
    deep = ["Food > Fresh > Fruit > Apple", "Garden > Trees > Fruit > Apple"]
    names = short_names(
        [*alike, *deep, *alike, "Gear > Bags", "Home > Kitchen > Pans > $5 deals", "A > B > " + "x" * 99]
    )
    assert [names[path] for path in alike] == alike
    assert [names[path] for path in deep] == ["Food > … > Fruit > Apple", "Garden > … > Fruit > Apple"]
    assert names["Gear > Bags"] == "Gear > Bags"
    assert names["Home > Kitchen > Pans > $5 deals"] == r"Pans > \$5 deals"
    assert len(names["A > B > " + "x" * 99]) == 46


def test_the_picture_of_confusions_names_both_sides() -> None:
    pair = ("Women > Tops > Jackets", "Men > Tops > Jackets")
    figure = confused_pairs([(*pair, 26)], {pair[0]: 90})
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text() == "Women > Tops > Jackets  →  Men > Tops > Jackets"
