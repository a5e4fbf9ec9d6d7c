"""Which words a category rests on: ways to find them, how faithful they are to the model, and what they cost.

python benchmarks/explaining.py

Faithful is (DeYoung et al. 2020, ERASER, section 4): without the words that are said to count, the category loses its probability
(comprehensiveness: more is better), and with those alone it keeps it (sufficiency: less is lost). Both are means over the first 10, 20
and 50% of a product's words. All ways are asked about the same rows, and the model is asked as it labels: words and network together.

Needs `pip install captum`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from cataloger.data.text import load_tokenizer
from cataloger.explaining.occlusion import Explainer
from cataloger.explaining.words import Words
from cataloger.model.network import load_network
from cataloger.model.tiers import Tiers
from quality import OFFICIAL, REAL, SETTINGS, file_of, learn
from yardsticks import report, workroom

Scores = npt.NDArray[np.float64]
SHARES = (0.1, 0.2, 0.5)
STEPS = 20  # of integrated gradients
ORDERS = 8  # of Shapley values
LEAST = 1e-7


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = ("instacart", "mwpd2020")
    """Catalogs."""
    models: tuple[str, ...] = ()
    """Bundle folders, one for each catalog; without them they are trained, which takes long."""
    rows: int = 300
    """Products of each that no training saw."""


@dataclass(frozen=True)
class Case:
    """A product: its words, and the category it is given."""

    words: Words
    category: int

    @property
    def size(self) -> int:
        return len(self.words.units)


class Model:
    """A bundle, asked as it labels where all is asked about every row; and its network, to be differentiated."""

    def __init__(self, folder: Path) -> None:
        self.tiers = Tiers(folder, precision="auto")
        self.asked = Explainer.of(self.tiers)
        self.network: Any = load_network(folder, torch.float32).eval()
        self.network.config._attn_implementation = self.network.encoder.config._attn_implementation = "eager"
        self.tokenizer = load_tokenizer(folder, self.tiers.spec.max_tokens)
        words = self.tiers.spec.words
        self.words_count = words.weight if words else 0.0
        self.network_counts = 1 / (words.network_temperature if words else self.tiers.spec.temperature)

    def probabilities(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return self.asked.probabilities(pa.array(texts, pa.large_string()))

    def odds(self, texts: list[str], case: Case) -> Scores:
        return log_odds(self.probabilities(texts), case)

    def odds_of_words(self, texts: list[str], case: Case) -> Scores:
        assert self.tiers.first
        return log_odds(self.tiers.first.probabilities(pa.array(texts, pa.large_string())), case)

    def tokens(self, case: Case) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        """[1, tokens], and the unit of each, -1 for none."""
        found = self.tokenizer.encode(case.words.text)
        of = np.full(len(found.ids), -1)
        for number, unit in enumerate(case.words.units):
            for stretch in unit.stretches:
                for token, (start, end) in enumerate(found.offsets):
                    if start < end and start < stretch.end and end > stretch.start:
                        of[token] = number
        return torch.tensor([found.ids]), of


def log_odds(said: npt.NDArray[np.float32], case: Case) -> Scores:
    own = np.clip(said[:, case.category].astype(float), LEAST, 1 - LEAST)
    return np.log(own / (1 - own))


def against_all(logits: torch.Tensor, case: Case) -> torch.Tensor:
    """[rows] the same of logits."""
    rest = torch.cat([logits[:, : case.category], logits[:, case.category + 1 :]], dim=1)
    return logits[:, case.category] - rest.logsumexp(dim=1)


def by_chance(model: Model, case: Case) -> Scores:
    return np.random.default_rng(len(case.words.text)).random(case.size)


def left_out(model: Model, case: Case) -> Scores:
    said = model.odds([case.words.text, *(case.words.without(unit) for unit in range(case.size))], case)
    return said[0] - said[1:]


def alone(model: Model, case: Case) -> Scores:
    return model.odds([case.words.only(unit) for unit in range(case.size)], case)


def both_ends(model: Model, case: Case) -> Scores:
    """The way of `cataloger.explaining`, up to a constant."""
    units = range(case.size)
    said = model.odds([case.words.text, *map(case.words.without, units), *map(case.words.only, units)], case)
    return said[0] - said[1 : 1 + case.size] + said[1 + case.size :]


def greedy(model: Model, case: Case) -> Scores:
    """The word whose loss costs most, then of the others the one that costs most, and so on."""
    found, gone = np.zeros(case.size), list[int]()
    for rank in range(case.size):
        left = [unit for unit in range(case.size) if unit not in gone]
        said = model.odds([case.words.without(*gone, unit) for unit in left], case)
        gone.append(left[int(said.argmin())])
        found[gone[-1]] = case.size - rank
    return found


def shapley(model: Model, case: Case) -> Scores:
    """By permutations (Castro et al. 2009), each with its reverse."""
    random, texts, steps = np.random.default_rng(0), [], []
    for _ in range(ORDERS // 2):
        order = random.permutation(case.size)
        for one in (order, order[::-1]):
            steps.append(one)
            texts += [case.words.only(*one[:count]) for count in range(case.size + 1)]
    said = model.odds(texts, case).reshape(ORDERS, case.size + 1)
    found = np.zeros(case.size)
    for one, values in zip(steps, said, strict=True):
        found[one] += np.diff(values)
    return found


def gradient(model: Model, case: Case) -> Scores:
    """Gradient x input of the network, and what the words themselves weigh where they are left out."""
    ids, of = model.tokens(case)
    vectors = model.network.get_input_embeddings()(ids).detach().requires_grad_()
    logits = _by_vectors(model, vectors, torch.ones_like(ids))
    against_all(logits, case)[0].backward()
    return _joined(model, case, (vectors.grad * vectors).sum(dim=2)[0].detach().numpy(), of)


def _by_vectors(model: Model, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As `MeanPoolingForSequenceClassification.forward`, from word embeddings on."""
    hidden = model.network.encoder(inputs_embeds=vectors, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return model.network.classifier((hidden * weights).sum(dim=1) / weights.sum(dim=1))


def integrated(model: Model, case: Case) -> Scores:
    """Integrated gradients (Sundararajan et al. 2017) from a text of padding, by captum."""
    from captum.attr import LayerIntegratedGradients

    ids, of = model.tokens(case)
    nothing = torch.where(torch.from_numpy(of >= 0).unsqueeze(0), torch.zeros_like(ids), ids)

    def apart(tokens: torch.Tensor) -> torch.Tensor:
        logits = model.network(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        return against_all(logits, case)

    found = LayerIntegratedGradients(apart, model.network.get_input_embeddings()).attribute(ids, nothing, n_steps=STEPS)
    return _joined(model, case, found.sum(dim=2)[0].detach().numpy(), of)


def rollout(model: Model, case: Case) -> Scores:
    """Attention rollout (Abnar and Zuidema 2020) from the pooled vector; it knows nothing of categories."""
    ids, of = model.tokens(case)
    with torch.no_grad():
        attentions = model.network.encoder(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True
        ).attentions
    flow = torch.eye(ids.shape[1])
    for layer in attentions:
        flow = (layer[0].mean(dim=0) + torch.eye(ids.shape[1])) / 2 @ flow
    return _per_unit(flow.mean(dim=0).numpy(), of, case.size)


def _joined(model: Model, case: Case, tokens: npt.NDArray[Any], of: npt.NDArray[np.int64]) -> Scores:
    found = model.network_counts * _per_unit(tokens, of, case.size)
    if model.words_count:
        said = model.odds_of_words([case.words.text, *(case.words.without(unit) for unit in range(case.size))], case)
        found += model.words_count * (said[0] - said[1:])
    return found


def _per_unit(tokens: npt.NDArray[Any], of: npt.NDArray[np.int64], size: int) -> Scores:
    return np.bincount(of[of >= 0], tokens[of >= 0], minlength=size).astype(float)


WAYS: dict[str, Callable[[Model, Case], Scores]] = {
    "by chance": by_chance,
    "attention rollout": rollout,
    "gradient × input": gradient,
    f"integrated gradients, {STEPS} steps": integrated,
    "each word alone": alone,
    "each word left out": left_out,
    "left out and alone, mean": both_ends,
    "left out one after the other": greedy,
    f"Shapley values, {ORDERS} orders": shapley,
}


def main() -> None:
    config = tyro.cli(Config)
    torch.set_num_threads(2)
    rows: list[dict[str, object]] = []
    with workroom() as room:
        for place, name in enumerate(config.sets):
            folder = Path(config.models[place]) if config.models else learn(name, 0, room)
            model = Model(folder)
            cases = chosen(model, name, config.rows)
            for way, function in WAYS.items():
                function(model, cases[0])
                started = time.perf_counter()
                scores = [function(model, case) for case in cases]
                took = (time.perf_counter() - started) / len(cases)
                lost, kept = np.mean(
                    [faithful(model, case, own) for case, own in zip(cases, scores, strict=True)], axis=0
                )
                rows.append(
                    {
                        "catalog": name,
                        "way": way,
                        "comprehensiveness": lost,
                        "sufficiency": kept,
                        "ms a row": 1_000 * took,
                    }
                )
                print(rows[-1], flush=True)
    report("explaining", f"Which words count, {config.rows} products each", rows)


def chosen(model: Model, name: str, count: int) -> list[Case]:
    """Products of several words with their answers, of rows that training did not see where that can be told."""
    file = REAL / "mwpd2020" / "test.parquet" if name in OFFICIAL else file_of(name)
    columns = SETTINGS[name]["text_columns"]
    table = pq.read_table(file, columns=list(columns))
    read = model.tiers.input.read(table).values.drop_null().unique()
    texts = read.take(pa.array(np.random.default_rng(0).permutation(len(read))[: 3 * count])).to_pylist()
    found = []
    for text in texts:
        words = Words(text)
        if len(words.units) >= 3:
            found.append(Case(words, int(model.probabilities([text])[0].argmax())))
    return found[:count]


def faithful(model: Model, case: Case, scores: Scores) -> tuple[float, float]:
    """(comprehensiveness, sufficiency): how much probability is lost without the first words, and with those alone."""
    order = np.argsort(-scores, kind="stable")
    counts = [max(1, math.ceil(share * case.size)) for share in SHARES]
    texts = [case.words.text]
    texts += [case.words.without(*order[:count].tolist()) for count in counts]
    texts += [case.words.only(*order[:count].tolist()) for count in counts]
    said = model.probabilities(texts)[:, case.category]
    return float(said[0] - said[1 : 1 + len(counts)].mean()), float(said[0] - said[1 + len(counts) :].mean())


if __name__ == "__main__":
    main()
