from __future__ import annotations

import json

import pytest
import torch

from moesim.base.errors import FormatError
from moesim.moe.tokenizer import END_ID, encode, train_tokenizer
from moesim.moe.weights import BUNDLED, load_model, save_model

SAMPLES = [
    "And it came to pass, when the king heard the words of the people, that he sent messengers unto all the cities of "
    "the land, saying, Let every man return unto his house in peace.",
    "// size returns the number of bytes that are left in the buffer.\nfunc (b *Buffer) size() int {\n\tif b == nil {\n"
    "\t\treturn 0\n\t}\n\treturn len(b.data) - b.start\n}\n",
    "Deduction from a conjunction.\nfoo1 $p |- ( ( ph /\\ ps ) -> ( ps -> ch ) ) $.",
    "Wählen Sie den Befehl im Menü und klicken Sie auf die Schaltfläche, um die Tabelle zu öffnen.",
    "Откройте документ и выберите команду в меню, чтобы вставить таблицу.",
    "メニューからコマンドを選択して、表を挿入します。",
]


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
    (saved / "config.json").write_text('{"layrs": 2}')
    with pytest.raises(FormatError, match=r"config.json: layrs: unknown key 'layrs': did you mean 'layers'"):
        load_model(saved)


def test_a_configuration_of_another_size_is_refused(saved):
    (saved / "config.json").write_text('{"layers": 2}')
    with pytest.raises(FormatError, match=r"embedding.weight has shape \(300, 16\), expected \(4096, 128\)"):
        load_model(saved)


def test_the_bundled_weights_keep_their_promises_about_size():
    sizes = [path.stat().st_size for path in BUNDLED.glob("*.safetensors")]
    assert sizes
    assert max(sizes) <= 16 * 2**20
    assert sum(sizes) <= 32 * 2**20


def test_the_bundled_model_predicts_better_than_token_frequencies():
    bundle = load_model()
    texts = [[END_ID, *ids] for ids in encode(bundle.tokenizer, SAMPLES)]
    with torch.inference_mode():
        guesses = [torch.log_softmax(bundle.model(torch.tensor([ids[:-1]])).logits[0], -1) for ids in texts]
    # what the model expects on average over these very texts: token frequencies that suit them better than any
    # unigram model of the training text could
    frequencies = torch.cat(guesses).exp().mean(0).log()
    for ids, guess in zip(texts, guesses, strict=True):
        wanted = torch.tensor(ids[1:])
        loss, unigram = -guess.gather(1, wanted[:, None]).mean(), -frequencies[wanted].mean()
        assert loss < unigram - 0.5


def test_the_tokenizer_gives_every_text_back():
    tokenizer = load_model().tokenizer
    for text in (*SAMPLES, "打开窗口。", "\t\x00 🎉"):
        assert tokenizer.decode(encode(tokenizer, [text])[0]) == text
