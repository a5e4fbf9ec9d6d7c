"""Where an English base model fails: Chinese names and reviews of products, and German names by a model that has learnt English ones.

python benchmarks/languages.py
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from cataloger.bundle import WEIGHTS
from cataloger.config import TrainConfig
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.taxonomy import SEPARATOR
from cataloger.training.job import train
from quality import BOTH, BY_WORDS, NETWORK, apart
from yardsticks import report, workroom

REAL = Path(__file__).parents[2] / "shared" / "data"
TEST, REVIEWS = 0.2, 3_000
GERMAN = {
    "Animals & Pet Supplies": "Katzenstreu, Hundeleine, Aquariumfilter, Vogelkäfig, Hundefutter, Kratzbaum, Hamsterrad, Fischfutter, Hundekorb",
    "Apparel & Accessories": "Ledergürtel, Regenjacke, Damenhandschuhe, Wollmütze, Herrenhemd, Laufschuhe, Socken, Halskette, Ohrringe, Badehose",
    "Baby & Toddler": "Babyflasche, Schnuller, Wickeltasche, Kinderwagen, Windeln, Laufstall, Babyphon, Lätzchen",
    "Electronics": "Kopfhörer, Fernseher, Drucker, Lautsprecher, Ladekabel, Tastatur, Router, Speicherkarte, Handyhülle, Bildschirm",
    "Food, Beverages & Tobacco": "Vollkornbrot, Apfelsaft, Erdbeermarmelade, Olivenöl, Vollmilchschokolade, Rotwein, Kaffeebohnen, Haferflocken, Käse, Nudeln",
    "Furniture": "Kleiderschrank, Esstisch, Schreibtischstuhl, Bücherregal, Sofa, Nachttisch, Gartenbank, Etagenbett, Sessel, Kommode",
    "Hardware": "Bohrmaschine, Schraubenzieher, Hammer, Dübel, Wasserhahn, Farbroller, Säge, Türschloss, Zange, Nägel",
    "Health & Beauty": "Zahnbürste, Haarshampoo, Lippenstift, Sonnencreme, Rasierer, Pflaster, Nagellack, Fieberthermometer, Gesichtscreme, Parfüm",
    "Home & Garden": "Bratpfanne, Gartenschlauch, Bettwäsche, Rasenmäher, Blumentopf, Handtuch, Kerzenhalter, Teppich, Kaffeemaschine, Vorhang",
    "Luggage & Bags": "Reisekoffer, Rucksack, Sporttasche, Kofferanhänger, Einkaufstasche",
    "Office Supplies": "Bleistift, Klebeband, Aktenordner, Papierlocher, Briefumschlag, Heftklammern, Notizblock, Radiergummi",
    "Sporting Goods": "Fahrradhelm, Tennisschläger, Zelt, Hantel, Yogamatte, Angelrute, Skibrille, Fußball, Schlafsack, Golfball",
    "Toys & Games": "Puppe, Brettspiel, Modelleisenbahn, Kuscheltier, Holzpuzzle, Bauklötze, Kartenspiel, Spielzeugauto",
    "Vehicles & Parts": "Autoreifen, Motoröl, Scheibenwischer, Zündkerze, Bremsbelag, Dachgepäckträger, Autobatterie, Stoßdämpfer",
}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = ("german", "chinese names", "chinese reviews")
    """Rows."""
    bases: tuple[str, ...] = ("minilm", "e5")
    """Base models."""
    seed: int = 0
    """Of the trainings."""


def main() -> None:
    config = tyro.cli(Config)
    rows: list[dict[str, object]] = []
    with workroom() as room:
        for name, base in itertools.product(config.sets, config.bases):
            learnt, test = {"german": german, "chinese names": names, "chinese reviews": reviews}[name]()
            pq.write_table(learnt, room / f"{name}.parquet")
            rows.append({"rows": name, "base model": base, **measure(name, base, room, test, config.seed)})
            print(rows[-1], flush=True)
    report("languages", "Accuracy on rows that training never saw", rows)


def german() -> tuple[pa.Table, pa.Table]:
    """(the English names of Google's tree by their first level, German ones)"""
    paths = pq.read_table(REAL / "taxonomies" / "google_en.parquet").column("path").to_pylist()
    tops = [path.split(SEPARATOR)[0] for path in paths]
    pairs = [(name, top) for top, all_of in GERMAN.items() for name in all_of.split(", ")]
    return table([path.split(SEPARATOR)[-1] for path in paths], tops), table(*zip(*pairs, strict=True))


def names() -> tuple[pa.Table, pa.Table]:
    """The leaves of a Chinese tree by what is above them: a fifth of them to be told, the others to learn from."""
    paths = pq.read_table(REAL / "taxonomies" / "zh_retail.parquet").column("path").to_pylist()
    leaves = [path.rpartition(SEPARATOR) for path in paths if path.count(SEPARATOR) == 2]
    whole = table([leaf for _, _, leaf in leaves], [above for above, _, _ in leaves])
    chosen = np.random.default_rng(0).random(len(whole)) < TEST
    learnt = whole.filter(pa.array(~chosen))
    known = pc.is_in(whole.column("category_path"), learnt.column("category_path"))
    return learnt, whole.filter(pc.and_(pa.array(chosen), known))


def reviews() -> tuple[pa.Table, pa.Table]:
    """Chinese sentences by the kind of product that they are about."""
    parts = [
        pq.read_table(file, columns=["title", "category_path", "lang"])
        for file in sorted((REAL / "scale_mix").glob("*"))
    ]
    found = pa.concat_tables(parts).filter(pc.field("lang") == "zh").drop_columns(["lang"])
    drawn = np.random.default_rng(0).permutation(len(found))[: 2 * REVIEWS]
    found = found.take(pa.array(drawn)).append_column("id", pa.array(range(2 * REVIEWS)))
    return found.slice(0, REVIEWS), found.slice(REVIEWS)


def table(titles: list[str], paths: list[str]) -> pa.Table:
    return pa.table({"id": pa.array(range(len(titles))), "title": list(titles), "category_path": list(paths)})


def measure(name: str, base: str, room: Path, test: pa.Table, seed: int) -> dict[str, object]:
    long = name == "chinese reviews"
    trained = train(
        TrainConfig(
            catalog=str(room / f"{name}.parquet"),
            text_columns=("title",),
            base_model=base,
            max_tokens=64 if long else 16,
            # As it comes, but for the longest texts, where a third of the work shows it as well.
            epochs=4 if long else None,
            adversarial=0.0 if long else None,
            seed=seed,
            storage=str(room / "checkpoints"),
            model_name=f"{name.replace(' ', '-')}-{base}",
        )
    )
    folder = fetch_model(trained.model_uri).folder
    found: dict[str, object] = {"test rows": len(test), "MB": (folder / WEIGHTS).stat().st_size / 1e6}
    true = test.column("category_path").to_pylist()
    for who, one in apart(folder, room / f"{name}-{base}").items():
        given = Tiers(one, precision="auto").label(test.select(["title"])).column("category").to_pylist()
        found[who] = float(np.mean([a == b for a, b in zip(given, true, strict=True)]))
    return {who: found[who] for who in ("test rows", "MB", NETWORK, BY_WORDS, BOTH)}


if __name__ == "__main__":
    main()
