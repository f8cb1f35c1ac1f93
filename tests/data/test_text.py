"""Tokenizers: round trips, minimum counts, saving, and what bad files get."""

import json

import numpy as np
import pytest

from mmgen_jax.data import text

CAPTIONS = [
    "A dog runs on the grass.",
    "The dog 's red ball, on the grass!",
    "A snow-covered dog doesn't run; it's 2 o'clock.",
] * 3
ODD = ["", " two  spaces ", "<pad> <eos> <unk>", "Zürich, 東京 \U0001f600\n\ttab", "it's a dog's ball"]
SPECS = [{"name": "words", "min_count": 1}, {"name": "bytes"}, {"name": "byte_pair", "vocab_size": 300}]


@pytest.fixture(params=SPECS, ids=lambda spec: spec["name"])
def tokenizer(request):
    return text.train(request.param, CAPTIONS)


def test_ids_lie_between_specials_and_vocab_size(tokenizer):
    ids = [token for caption in CAPTIONS for token in tokenizer.encode(caption)]
    assert min(ids) >= text.SPECIALS
    assert max(ids) < tokenizer.vocab_size


def test_decode_drops_specials_and_stops_at_eos(tokenizer):
    ids = tokenizer.encode("a dog")
    whole = [text.BOS, *ids, text.UNK, text.EOS, *ids, text.PAD]
    assert tokenizer.decode(np.array(whole, np.int32)) == "a dog"


def test_save_and_load_keep_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = text.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.vocab_size == tokenizer.vocab_size
    for caption in CAPTIONS + ODD:
        assert loaded.encode(caption) == tokenizer.encode(caption)


def test_training_twice_gives_the_same_fingerprint_and_other_captions_another(tokenizer):
    spec = next(spec for spec in SPECS if spec["name"] == tokenizer.kind)
    assert text.train(spec, iter(CAPTIONS)).fingerprint == tokenizer.fingerprint
    if tokenizer.kind != "bytes":
        assert text.train(spec, [*CAPTIONS, "zebra zebra zebra"]).fingerprint != tokenizer.fingerprint


def test_ids_of_another_vocabulary_are_refused(tokenizer):
    with pytest.raises(ValueError, match="another tokenizer"):
        tokenizer.decode([tokenizer.vocab_size])


@pytest.mark.parametrize("spec", SPECS[1:], ids=lambda spec: spec["name"])
def test_bytes_and_byte_pair_are_lossless(spec):
    tokenizer = text.train(spec, CAPTIONS)
    for caption in CAPTIONS + ODD:
        assert tokenizer.decode(tokenizer.encode(caption)) == caption


def test_words_split_and_order():
    assert text.Words.split("A snow-covered DOG doesn't run; it's 2 o'clock.") == [
        *("a", "snow-covered", "dog", "doesn't", "run", "it's", "2", "o'clock")
    ]
    assert text.Words.split("the dog 's ball , 'quoted' .") == ["the", "dog", "'s", "ball", "quoted"]
    words = text.Words.train(["b a a", "c b a"], min_count=1)
    assert words.words == ["a", "b", "c"]
    assert words.encode("A, b?  C!") == [4, 5, 6]
    assert words.decode([4, 5, 6]) == "a b c"


def test_words_min_count_makes_rare_words_unknown():
    words = text.Words.train(["a a b"], min_count=2)
    assert words.encode("a b zebra") == [4, text.UNK, text.UNK]
    with pytest.raises(ValueError, match="lower min_count"):
        text.Words.train(["a b"], min_count=2)


def test_byte_pair_has_the_size_asked_for_and_shortens():
    small = text.train({"name": "byte_pair", "vocab_size": 270}, CAPTIONS)
    assert small.vocab_size == 270
    assert len(small.encode(CAPTIONS[0])) < len(CAPTIONS[0])
    with pytest.raises(ValueError, match="at least 260"):
        text.train({"name": "byte_pair", "vocab_size": 100}, CAPTIONS)


def test_a_cut_character_is_still_readable():
    tokenizer = text.Bytes()
    assert tokenizer.decode(tokenizer.encode("aé")[:-1]) == "a\ufffd"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "word"}, 'Did you mean "words"'),
        ({"name": "words", "min_cout": 3}, 'Did you mean "min_count"'),
        ({"name": "bytes", "captions": []}, "Unknown key"),
        ({"min_count": 3}, 'needs a "name"'),
    ],
)
def test_bad_specs_name_the_nearest(spec, message):
    with pytest.raises(ValueError, match=message):
        text.train(spec, CAPTIONS)


def test_load_errors_name_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json.*workdir"):
        text.load(path)
    text.Words(["a", "b"]).save(path)
    whole = path.read_text()
    for content in (whole[:-8], "", "[]", json.dumps({"kind": "word"}), json.dumps({"kind": "words"})):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a whole tokenizer"):
            text.load(path)


def test_real_captions(shared_data):
    rows = (shared_data / "flickr8k_96" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [caption for row in map(json.loads, rows[:1000]) for caption in row["captions"]]
    words = text.train({"name": "words", "min_count": 5}, captions)
    known = [token for caption in captions for token in words.encode(caption)]
    assert np.mean(np.array(known) == text.UNK) < 0.1
    pairs = text.train({"name": "byte_pair", "vocab_size": 600}, captions)
    assert all(pairs.decode(pairs.encode(caption)) == caption for caption in captions[:200])
