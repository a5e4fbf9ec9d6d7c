import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from cataloger.bundle import network_shape, read_spec
from cataloger.data.inputs import input_of
from cataloger.data.text import load_tokenizer, tokenize
from cataloger.errors import ConfigError
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.predictor import Predictor
from cataloger.model.vocabulary import cut_vocabulary
from cataloger.spec import Spec

TEXTS = ["Leather belt, brown 100 cm", "Организатор для кухни", "不锈钢锅 20cm", "café crème brûlée set"]


def used_by(folder: Path, texts: list[str]) -> np.ndarray:
    found = np.zeros(network_shape(folder)[1], bool)
    found[tokenize(load_tokenizer(folder, 64), pa.array(texts)).flatten().to_numpy()] = True
    return found


def logits_of(folder: Path, texts: list[str]) -> np.ndarray:
    predictor = Predictor(folder)
    encoded = input_of(read_spec(folder), folder).encode(pa.array(texts, pa.large_string()))
    found = np.empty((len(texts), predictor.spec.width), np.float32)
    for rows, logits in predictor.logits(encoded):
        found[rows] = logits.numpy()
    return found


def test_answers_are_the_same_and_the_model_is_smaller(bundle: Path, tmp_path: Path) -> None:
    cut = cut_vocabulary(bundle, tmp_path / "cut", used_by(bundle, TEXTS))
    assert cut.before == 30_522
    assert cut.after < cut.before / 5
    assert network_shape(tmp_path / "cut")[1] == cut.after
    np.testing.assert_array_equal(logits_of(tmp_path / "cut", TEXTS), logits_of(bundle, TEXTS))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (bundle, tmp_path / "cut")]
    assert sizes[1] < sizes[0] / 3


def test_what_the_catalog_has_not_is_read_by_smaller_pieces(bundle: Path, tmp_path: Path) -> None:
    cut_vocabulary(bundle, tmp_path / "cut", used_by(bundle, TEXTS))
    tokens = load_tokenizer(tmp_path / "cut", 64).encode("Quetzalcoatlus thermometers").tokens
    assert "".join(token.removeprefix("##") for token in tokens[1:-1]) == "quetzalcoatlusthermometers"


def test_transformers_reads_the_same_tokens(bundle: Path, tmp_path: Path) -> None:
    """Elsewhere, without cataloger."""
    cut_vocabulary(bundle, tmp_path / "cut", used_by(bundle, TEXTS))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cut")
    own = load_tokenizer(tmp_path / "cut", 64)
    assert tokenizer(TEXTS)["input_ids"] == [own.encode(text).ids for text in TEXTS]
    assert tokenizer.pad_token_id == network_shape(tmp_path / "cut")[0]
    assert tokenizer.mask_token_id == own.token_to_id("[MASK]")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut", trust_remote_code=True)
    assert network.get_input_embeddings().num_embeddings == own.get_vocab_size()


def unigram(folder: Path, pooling: str) -> Path:
    """A bundle whose tokenizer is as XLM-RoBERTa's, and whose padding token is not the first one."""
    pieces = sorted(
        {piece for text in [*TEXTS, "thermometer"] for word in text.split() for piece in (f"\u2581{word}", *word)}
    )
    pieces += ["\u2581", "\u2581therm", "ometer", "ж"]
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -1.0 - number / 50) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    base = folder / "base"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=1,
    )
    BertModel(config).save_pretrained(base)
    tokenizer.save(str(base / "tokenizer.json"))
    (base / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"})
    )
    spec = Spec(("A", "B > C", "B > D"), ("title",), 32, pooling, "none")
    save_bundle(folder / "bundle", new_classifier(base, spec), base, spec)
    return folder / "bundle"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_pieces(tmp_path: Path, pooling: str) -> None:
    bundle = unigram(tmp_path, pooling)
    cut = cut_vocabulary(bundle, tmp_path / "cut", used_by(bundle, TEXTS[:1]))
    assert cut.after < cut.before
    assert network_shape(tmp_path / "cut")[0] == 1
    np.testing.assert_array_equal(logits_of(tmp_path / "cut", TEXTS[:1]), logits_of(bundle, TEXTS[:1]))
    assert "ж" not in load_tokenizer(tmp_path / "cut", 64).get_vocab()  # of a script that the catalog has not


def test_other_tokenizers_are_refused(bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    about: dict[str, Any] = json.loads((other / "tokenizer.json").read_text())
    about["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    (other / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="is of the kind BPE, which is not cut"):
        cut_vocabulary(other, tmp_path / "cut", np.ones(30_522, bool))


def test_every_product_of_the_sample(bundle: Path, labelled: Path, tmp_path: Path) -> None:
    titles = pq.read_table(labelled, columns=["title"]).column(0).to_pylist()
    cut_vocabulary(bundle, tmp_path / "cut", used_by(bundle, titles))
    before, after = load_tokenizer(bundle, 64), load_tokenizer(tmp_path / "cut", 64)
    assert [after.encode(text).tokens for text in titles] == [before.encode(text).tokens for text in titles]
