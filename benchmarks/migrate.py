"""Another tree: how right a proposed map is, and the labels by it, with five products known of each new category.

mwpd2020's shops have trees of their own, and the official one is the target. instacart's aisles are regrouped by hand: forward, many merge and
move; backward, each new category is split. python benchmarks/migrate.py
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.adapting.mapping import Old, Targets, propose, tell_apart
from cataloger.adapting.meaning import Meaning
from cataloger.adapting.trees import Tree
from quality import REAL
from yardsticks import report, seconds

EXAMPLES = 5
# The aisles of instacart, as somebody who stocks a shop by temperature and use would have them.
REGROUPED = {
    "Chilled > Milk and Cream": "milk, cream, butter, soy lactosefree",
    "Chilled > Cheese": "packaged cheese, specialty cheeses, other creams cheeses",
    "Chilled > Yogurt and Desserts": "yogurt, refrigerated pudding desserts",
    "Chilled > Eggs": "eggs",
    "Chilled > Meat": "meat counter, packaged meat, hot dogs bacon sausage, lunch meat, poultry counter, packaged poultry",
    "Chilled > Fish": "seafood counter, packaged seafood",
    "Chilled > Ready to Eat": "prepared meals, prepared soups salads, fresh dips tapenades, fresh pasta, tofu meat alternatives",
    "Frozen > Meals": "frozen meals, frozen pizza, frozen appetizers sides, frozen vegan vegetarian, frozen breakfast",
    "Frozen > Ice and Desserts": "ice cream ice, frozen dessert, frozen juice",
    "Frozen > Raw": "frozen produce, frozen meat seafood, frozen breads doughs",
    "Greens > Fruit": "fresh fruits",
    "Greens > Vegetables and Herbs": "fresh vegetables, fresh herbs, packaged vegetables fruits, packaged produce",
    "Store Cupboard > Grain and Pasta": "dry pasta, grains rice dried goods, bulk grains rice dried goods, instant foods",
    "Store Cupboard > Tins and Jars": "canned fruit applesauce, canned jarred vegetables, canned meals beans, canned meat seafood, soup broth bouillon, "
    "pickled goods olives",
    "Store Cupboard > Sauces and Spices": "condiments, pasta sauce, marinades meat preparation, salad dressing toppings, spices seasonings, oils vinegars, "
    "preserved dips spreads",
    "Store Cupboard > Sweet Spreads": "spreads, honeys syrups nectars",
    "Store Cupboard > Baking": "baking ingredients, baking supplies decor, doughs gelatins bake mixes, ice cream toppings",
    "Store Cupboard > Foods of the World": "asian foods, indian foods, kosher foods, latino foods",
    "Bakery and Breakfast > Bread": "bread, buns rolls, tortillas flat bread, breakfast bakery",
    "Bakery and Breakfast > Cakes": "bakery desserts, cookies cakes",
    "Bakery and Breakfast > Cereals": "cereal, granola, hot cereal pancake mixes, breakfast bars pastries",
    "Snacks > Sweet": "candy chocolate, mint gum, fruit vegetable snacks",
    "Snacks > Salty": "chips pretzels, crackers, popcorn jerky",
    "Snacks > Nuts and Bars": "nuts seeds dried fruit, trail mix snack mix, energy granola bars, bulk dried fruits vegetables",
    "Drinks > Hot": "coffee, tea, cocoa drink mixes",
    "Drinks > Soft": "soft drinks, juice nectars, water seltzer sparkling water, energy sports drinks, refrigerated",
    "Drinks > Beer and Spirits": "beers coolers, spirits",
    "Drinks > Wine": "red wines, white wines, specialty wines champagnes",
    "Family > Babies": "baby accessories, baby bath body care, baby food formula, diapers wipes",
    "Family > Pets": "cat food care, dog food care",
    "Bathroom > Skin and Beauty": "beauty, facial care, skin care, body lotions soap, soap",
    "Bathroom > Hair, Teeth and Shaving": "hair care, oral hygiene, shave needs, deodorants, feminine care",
    "Bathroom > Health": "cold flu allergy, digestion, eye ear care, first aid, muscles joints pain relief, vitamins supplements, protein meal replacements",
    "Home > Cleaning": "cleaning products, dish detergents, laundry, air fresheners candles",
    "Home > Kitchen": "food storage, kitchen supplies, plates bowls cups flatware, paper goods, trash bags liners",
    "Home > Rest": "more household, other",
}


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws other examples."""


def main() -> None:
    config, rows = tyro.cli(Config), list[dict[str, object]]()
    meaning = Meaning("minilm")
    for name, texts, old, new, shown in tasks():
        found = [measure(meaning, texts, old, new, shown, seed) for seed in config.seeds]
        rows.append(
            {
                "labels": name,
                "products": len(texts),
                **{key: float(np.mean([one[key] for one in found])) for key in found[0]},
            }
        )
    report("migrate", f"Labels in another tree, {EXAMPLES} examples of each new category", rows)


Rows = tuple[list[str], list[str]]


def tasks() -> list[tuple[str, list[str], list[str], list[str], Rows]]:
    """(name, texts, their old categories, their new ones, (texts, new categories) that examples are drawn from)"""
    parts = {part: pq.read_table(REAL / "mwpd2020" / f"{part}.parquet") for part in ("train", "test")}
    read = {
        part: (
            [text or "" for text in table.column("title").to_pylist()],
            [path or "none" for path in table.column("shop_category").to_pylist()],
            table.column("category_path").to_pylist(),
        )
        for part, table in parts.items()
    }
    texts, shops, official = read["test"]
    found = [
        ("mwpd2020: each shop's tree → GPC, test rows", texts, shops, official, (read["train"][0], read["train"][2]))
    ]
    table = pq.read_table(REAL / "instacart.parquet")
    titles, aisles = table.column("title").to_pylist(), table.column("category_path").to_pylist()
    to = {aisle: path for path, names in REGROUPED.items() for aisle in names.split(", ")}
    hand = [to.get(aisle.split(" > ")[-1], "Home > Rest") for aisle in aisles]
    rows = np.random.default_rng(7).permutation(len(titles))
    held, rest = rows[:5_000].tolist(), rows[5_000:].tolist()
    for name, before, after in (
        ("instacart → regrouped by hand", aisles, hand),
        ("regrouped by hand → instacart", hand, aisles),
    ):
        found.append(
            (
                name,
                [titles[row] for row in held],
                [before[row] for row in held],
                [after[row] for row in held],
                ([titles[row] for row in rest], [after[row] for row in rest]),
            )
        )
    return found


def measure(
    meaning: Meaning, texts: list[str], old: list[str], new: list[str], shown: Rows, seed: int
) -> dict[str, float]:
    own = defaultdict[str, list[int]](list)
    for row in np.random.default_rng(seed).permutation(len(shown[0])).tolist():
        if len(own[shown[1][row]]) < EXAMPLES:
            own[shown[1][row]].append(row)
    tree, examples = Tree(tuple(sorted({*shown[1], *new})), {}), [row for rows in own.values() for row in rows]
    found: dict[str, float] = {}
    made: list[tuple[Targets, Old, list[object]]] = []

    def propose_map() -> None:
        targets = Targets.of(tree, [shown[0][row] for row in examples], [shown[1][row] for row in examples], meaning)
        before = Old.of([(pa.array(old), pa.array(texts, pa.large_string()))])
        made.append((targets, before, propose(before, tree, targets, {}, meaning)))  # type: ignore[arg-type]

    found["seconds"] = seconds(propose_map)
    targets, before, proposed = made[0]
    rows = {row.old: row for row in proposed}  # type: ignore[attr-defined]
    votes = targets.votes(meaning.of(texts))
    place = {path: number for number, path in enumerate(targets.paths)}
    alone = np.array([targets.paths[number] for number in votes.argmax(axis=1)]) == np.array(new)
    right, apart = np.zeros(len(texts), bool), np.zeros(len(texts), bool)
    for row, category in enumerate(old):
        mapped = rows[category]
        if mapped.target:
            right[row] = mapped.target == new[row]
        else:
            several = [path for path, _ in mapped.targets]
            own = tell_apart(
                votes[row][None, [place[path] for path in several]], [share for _, share in mapped.targets]
            )
            apart[row] = True
            right[row] = several[int(own.argmax())] == new[row]
    commonest = {
        category: Counter(after for path, after in zip(old, new, strict=True) if path == category).most_common(1)[0][0]
        for category in before.counts
    }
    whole = [rows[category] for category in before.counts if rows[category].target]
    return {
        "moved labels that are right": float(right.mean()),
        "each product alone": float(alone.mean()),
        "the best map without splits": float(
            np.mean([commonest[path] == after for path, after in zip(old, new, strict=True)])
        ),
        "products told apart": float(apart.mean()),
        "right of those moved as a whole": float(right[~apart].mean()),
        "categories mapped as a whole that are right": float(
            np.mean([commonest[row.old] == row.target for row in whole])
        ),
        **found,
    }


if __name__ == "__main__":
    main()
