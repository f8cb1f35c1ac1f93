"""Tokenizers: round trips, minimum counts, saving, CLIP's against `transformers`, and what bad files get."""

import gzip
import json
import random

import numpy as np
import pytest

from mmgen_jax.data import text, text_transforms

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


# ---------------- CLIP's

HARD = [
    "",
    "   ",
    "A photo of a CAT.",
    "it's we're I'LL don't they'd 'quoted' o'clock '''s",
    "caf\u00e9 cafe\u0301 na\u00efve STRASSE stra\u00dfe \u0130stanbul \u039f\u0394\u039f\u03a3 \ufb01n",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd\u2764\ufe0f",
    "&lt;b&gt; &amp;amp; caf&eacute; &#39;s &#x1F600;",
    "2024 3.14 1,000 \u00bd \u00b2 \u2167 \u0663",
    "tab\tnew\nline\r\n\u00a0no-break\u3000wide\u2028 \x85 \x1c",
    "\x00\x01\x1f\x7f \u200b\ufeff\ufffd\ue000",
    "\u6771\u4eac\u30bf\u30ef\u30fc \ud55c\uad6d\uc5b4 \u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639",
    "<|startoftext|>a<|endoftext|> <|ENDOFTEXT|>! </w> #tag @user http://x.y/?q=1 snake_case --- ...",
    "long " * 200 + "x" * 500,
]


@pytest.fixture(scope="module")
def clip_path(shared_data):
    return shared_data / "clip_bpe_vocab" / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def clip(clip_path):
    return text.train({"name": "clip", "path": str(clip_path)}, [])


def test_clip_has_the_published_ids(clip):
    assert clip.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert (clip.pad, clip.bos, clip.eos, clip.vocab_size) == (0, 49406, 49407, 49408)


def test_clip_equals_transformers(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    clip.write_hugging_face(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    planes = [(0, 0x250), (0x250, 0x3100), (0x3100, 0xD800), (0xE000, 0x30000)]  # without the surrogates
    odd = ["".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(8)) for _ in range(300)]
    mixed = ["".join(rng.choice(HARD[2:-1])[: rng.randrange(9)] for _ in range(4)) for _ in range(300)]
    for caption in [*HARD, *odd, *mixed, *CAPTIONS, *ODD]:
        assert [clip.bos, *clip.encode(caption), clip.eos] == theirs(caption)["input_ids"], repr(caption)


def test_clip_decodes_to_readable_text(clip):
    caption = "A dog's caf\u00e9,  2 \u6771\u4eac \U0001f600!"
    ids = [clip.bos, *clip.encode(caption), clip.eos, clip.pad, clip.pad]
    assert clip.decode(ids) == "a dog 's caf\u00e9 , 2 \u6771\u4eac \U0001f600!"
    ids = [clip.bos, *clip.encode("cats frolicking"), clip.eos, clip.pad]
    assert clip.pieces(ids)[0] == "cats" and "".join(clip.pieces(ids)[1:]) == "frolicking"
    assert clip.decode([]) == clip.decode([clip.eos]) == ""
    with pytest.raises(ValueError, match="another tokenizer"):
        clip.decode([49408])


def test_clip_is_saved_and_loaded(clip, tmp_path):
    clip.save(tmp_path / "tokenizer.json")
    loaded = text.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == clip.fingerprint and loaded.kind == "clip"
    assert [loaded.encode(caption) for caption in HARD] == [clip.encode(caption) for caption in HARD]
    # Hugging Face's merges.txt is the same vocabulary.
    clip.write_hugging_face(tmp_path)
    again = text.train({"name": "clip", "path": str(tmp_path / "merges.txt")}, [])
    assert again.fingerprint == clip.fingerprint
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "clip", "merges": ["a b"]}))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a whole tokenizer \(1 merges"):
        text.load(tmp_path / "tokenizer.json")


def test_unknown_words():
    assert text.Words(["a", "dog"]).unknown("A red dog, a blue one") == ["red", "blue", "one"]
    assert text.Bytes().unknown("anything") == []


def test_clip_unescapes_when_asked(clip, clip_path):
    unescaping = text.train({"name": "clip", "path": str(clip_path), "unescape": True}, [])
    assert unescaping.encode("caf&eacute; &amp;lt;b&gt;") == clip.encode("caf\u00e9 <b>")
    assert clip.encode("&lt;") != clip.encode("<")
    assert unescaping.fingerprint != clip.fingerprint


def test_clip_vocabulary_errors_name_the_file_and_the_remedy(clip_path, tmp_path):
    with pytest.raises(ValueError, match='tokenizer "clip" needs a value for: path'):
        text.train({"name": "clip"}, [])
    with pytest.raises(FileNotFoundError, match=r"No vocabulary at .*nowhere.*bpe_simple_vocab_16e6"):
        text.train({"name": "clip", "path": str(tmp_path / "nowhere")}, [])
    whole = clip_path.read_bytes()
    plain = gzip.decompress(whole)
    unknown = plain.replace(b"\ni n\n", b"\ni not-a-piece\n", 1)
    bad = tmp_path / "bad.txt"
    for content in (whole[:-1000], plain[:1000], b"", b"\xff\xfe", b"\x1f\x8bnothing", unknown):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.txt is not the whole vocabulary of CLIP .* again"):
            text.train({"name": "clip", "path": str(bad)}, [])


PIECES = [
    *("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "a", "dog", "##s", "'", ",", "?", "!"),
    *("##ing", "run", "##n", "cafe", "2", "##0", "\u6771", "what", "is", "-", "<", ">", "A", "caf\u00e9", "straße", "[", "]"),
]  # fmt: skip


@pytest.fixture
def pieces_path(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def wordpiece(pieces_path):
    return text.train({"name": "wordpiece", "path": str(pieces_path)}, [])


def ids_of(*pieces):
    return [PIECES.index(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("said", "pieces"),
    [
        ("What is unaffable?", ["what", "is", "un", "##aff", "##able", "?"]),
        ("Dogs' running", ["dog", "##s", "'", "run", "##n", "##ing"]),
        (
            "a  caf\u00e9\t\u6771\u4eac",
            ["a", "cafe", "\u6771", "[UNK]"],
        ),  # accents go, Chinese characters stand alone
        (
            "dogaffx 20-2",
            ["[UNK]", "2", "##0", "-", "2"],
        ),  # a word that does not come out even is unknown as a whole
        ("a" * 101, ["[UNK]"]),
        ("", []),
    ],
)
def test_word_pieces_by_the_rules(wordpiece, said, pieces):
    assert wordpiece.encode(said) == ids_of(*pieces)


def test_word_pieces_have_the_ids_around_a_text_that_published_weights_know(wordpiece, pieces_path):
    assert (wordpiece.pad, wordpiece.bos, wordpiece.eos, wordpiece.vocab_size) == (0, 3, 4, len(PIECES))
    row = text_transforms.question(6, tokenizer=wordpiece)({"question": "a dog?"}, np.random.default_rng(0))[
        "question"
    ]
    assert row.tolist() == ids_of("[CLS]", "a", "dog", "?", "[SEP]", "[PAD]")
    assert wordpiece.decode(row) == "a dog ?"
    assert wordpiece.pieces(row) == ["a", "dog", "?"]
    assert wordpiece.decode(ids_of("un", "##aff", "##able", "[UNK]", "dog", "##s")) == "unaffable dogs"
    assert wordpiece.unknown("a Zebra, a dog") == ["Zebra"]
    cased = text.train({"name": "wordpiece", "path": str(pieces_path), "lowercase": False}, [])
    assert (
        cased.encode("A caf\u00e9 a") == ids_of("A", "caf\u00e9", "a")
        and cased.fingerprint != wordpiece.fingerprint
    )


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_pieces_equal_transformers(pieces_path, lowercase):
    transformers = pytest.importorskip("transformers")
    ours = text.train({"name": "wordpiece", "path": str(pieces_path), "lowercase": lowercase}, [])
    vocab = {piece: k for k, piece in enumerate(PIECES)}
    theirs = transformers.BertTokenizer(vocab=vocab, do_lower_case=lowercase)
    said = [
        *CAPTIONS,
        *ODD,
        *HARD,
        "unaffable dogs",
        "A caf\u00e9 Straße",
        "what is[SEP] [MASK] a",
        "a\u0301 \x00\ufffd\u200d!",
    ]
    for one in said:
        assert [ours.bos, *ours.encode(one), ours.eos] == theirs(one)["input_ids"], repr(one)


def test_word_pieces_are_saved_and_loaded(wordpiece, tmp_path):
    wordpiece.save(tmp_path / "tokenizer.json")
    loaded = text.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == wordpiece.fingerprint and loaded.eos == wordpiece.eos
    assert [loaded.encode(one) for one in ODD] == [wordpiece.encode(one) for one in ODD]


def test_word_piece_vocabulary_errors_name_the_file_and_the_remedy(tmp_path):
    def read(content):
        (tmp_path / "bad.txt").write_text(content, encoding="utf-8")
        text.train({"name": "wordpiece", "path": str(tmp_path / "bad.txt")}, [])

    with pytest.raises(FileNotFoundError, match=r"No vocabulary at nowhere.*the vocab.txt that lies"):
        text.train({"name": "wordpiece", "path": "nowhere"}, [])
    with pytest.raises(ValueError, match=r"bad.txt is not a whole vocabulary of word pieces \(no \[SEP\]\)"):
        read("[PAD]\n[UNK]\n[CLS]\n")
    with pytest.raises(ValueError, match=r"\(a piece twice\). Copy the weights' vocab.txt again"):
        read("\n".join([*PIECES, "dog"]))
