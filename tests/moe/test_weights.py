from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from moesim.base.errors import FormatError
from moesim.moe.tokenizer import END_ID, encode, train_tokenizer
from moesim.moe.weights import BUNDLED, load_model, save_model

TEXT = """And it came to pass, when the king heard the words of the people, that he sent messengers unto all the cities
of the land, saying, Let every man return unto his house in peace."""


@pytest.fixture
def saved(model, tmp_path):
    save_model(model, train_tokenizer(["a b a b c"], 300), tmp_path, shard_bytes=4096)
    return tmp_path


def test_weights_come_back_in_bfloat16_precision(model, saved):
    loaded = load_model(saved).model.state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor.bfloat16().float() if tensor.dim() >= 2 else tensor
        assert torch.equal(loaded[name], expected), name


def test_shards_stay_small(saved):
    shards = json.loads((saved / "weights.json").read_text())["shards"]
    assert len(shards) > 1
    assert all((saved / shard["file"]).stat().st_size == shard["bytes"] for shard in shards)


def test_a_damaged_shard_is_refused(saved):
    shard = sorted(saved.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=f"{shard.name}: sha256 .* differs"):
        load_model(saved)


def test_a_missing_shard_is_named(saved):
    shard = sorted(saved.glob("*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(FormatError, match=f"{shard.name}: cannot be read"):
        load_model(saved)


def test_a_shard_that_the_index_forgot_is_missed(saved):
    index = json.loads((saved / "weights.json").read_text())
    index["shards"].pop()
    (saved / "weights.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="do not match the model"):
        load_model(saved)


def test_a_configuration_with_unknown_keys_is_refused(saved):
    (saved / "config.json").write_text('{"layers": 2}')
    with pytest.raises(FormatError, match="expected exactly the keys"):
        load_model(saved)


def test_the_bundled_weights_keep_their_promises_about_size():
    sizes = [path.stat().st_size for path in BUNDLED.glob("*.safetensors")]
    assert sizes
    assert max(sizes) <= 16 * 2**20
    assert sum(sizes) <= 32 * 2**20


def test_the_bundled_model_predicts_better_than_token_frequencies():
    bundle = load_model()
    ids = [END_ID, *encode(bundle.tokenizer, [TEXT])[0]]
    with torch.inference_mode():
        logits = bundle.model(torch.tensor([ids[:-1]])).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()
    # the best that any unigram model could do on this text: its own token frequencies, known in advance
    _, counts = np.unique(ids[1:], return_counts=True)
    share = counts / counts.sum()
    entropy = float(-(share * np.log(share)).sum())
    assert loss < min(entropy, 6.0)


def test_the_tokenizer_gives_every_text_back():
    tokenizer = load_model().tokenizer
    for text in (TEXT, "Öffnen Sie das Fenster.", "Откройте окно.", "ウィンドウを開く。", "打开窗口。", "\t\x00 🎉"):
        assert tokenizer.decode(encode(tokenizer, [text])[0]) == text
