"""Caption scores and tokens against pycocoevalcap; floor, ceiling, intervals, Java scores, bad input."""

import json
import shutil
import warnings

import numpy as np
import pytest

from mmgen_jax import __version__
from mmgen_jax.scores import captions
from mmgen_jax.scores.captions import NAMES, References
from mmgen_jax.scores.ptb import tokenize

needs_java = pytest.mark.skipif(not shutil.which("java"), reason="needs Java, which is not on the PATH")


@pytest.fixture(scope="module")
def flickr8k(shared_data):
    """{"train": captions of 6,000 images, "dev": of 1,000}."""
    path = shared_data / "flickr8k_96" / "captions.jsonl"
    if not path.exists():
        pytest.skip(f"needs {path}")
    splits = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        splits.setdefault(row["split"], []).append(row["captions"])
    return splits


def coco(references, hypotheses):
    """Corpus and per-image scores by pycocoevalcap, from tokens; both under our names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its escape sequences
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    true = {i: [" ".join(tokens) for tokens in image] for i, image in enumerate(references)}
    guess = {i: [" ".join(tokens)] for i, tokens in enumerate(hypotheses)}
    bleu, bleu_each = Bleu(4).compute_score(true, guess, verbose=0)
    (rouge, rouge_each), (cider, cider_each) = (m().compute_score(true, guess) for m in (Rouge, Cider))
    corpus = dict(zip(NAMES, [*bleu, rouge, cider], strict=True))
    return corpus, dict(zip(NAMES, [*bleu_each, rouge_each, cider_each], strict=True))


def assert_equals_coco(references, hypotheses):
    statistics = References.of_tokens(references).compare_tokens(hypotheses)
    corpus, each = coco(references, hypotheses)
    ours, ours_each = statistics.score(), statistics.score_each()
    for name in NAMES:
        np.testing.assert_allclose(ours[name], corpus[name], rtol=0, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(ours_each[name], each[name], rtol=0, atol=1e-9, err_msg=name)


def random_set(rng):
    """Images with references and a hypothesis of random words, often repeated, sometimes none."""
    words = [f"w{i}" for i in range(rng.integers(1, 12))]

    def caption(shortest):
        return [str(word) for word in rng.choice(words, rng.integers(shortest, 14))]

    images = range(rng.integers(1, 9))
    references = [[caption(int(i % 3 > 0)) for i in range(rng.integers(1, 6))] for _ in images]
    references[0][0] = caption(1)  # pycocoevalcap fails where no reference at all has a word
    hypotheses = [caption(0) if rng.random() < 0.9 else [] for _ in references]
    return references, hypotheses


def test_equals_pycocoevalcap_on_random_sets():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        assert_equals_coco(*random_set(rng))


def test_equals_pycocoevalcap_on_real_captions(flickr8k):
    tokens = [[tokenize(caption) for caption in image] for image in flickr8k["dev"]]
    own = [image[0] if i % 7 else [] for i, image in enumerate(tokens)]
    other = [image[1] for image in tokens[1:] + tokens[:1]]
    mixed = [a if i % 2 else b for i, (a, b) in enumerate(zip(own, other, strict=True))]
    assert_equals_coco([image[1:] for image in tokens], mixed)
    for start in range(0, 1000, 10):
        part = slice(start, start + 10)
        assert_equals_coco([image[: 1 + start // 10 % 5] for image in tokens[part]], other[part])


def test_text_is_cut_before_it_is_scored():
    references = [["A dog's ball.", "The dog has a ball!"], ["Two cats, asleep", "Cats sleep; on (a) mat"]]
    hypotheses = ["a DOG 's ball", ""]
    cut = [[tokenize(caption) for caption in image] for image in references]
    expected = References.of_tokens(cut).compare_tokens([["a", "dog", "'s", "ball"], []])
    assert captions.score(references, hypotheses) == expected.score()
    each = captions.score_each(references, hypotheses)
    assert {name: each[name].tolist() for name in NAMES} == {
        name: values.tolist() for name, values in expected.score_each().items()
    }
    assert each["bleu4"][0] == pytest.approx(1) and all(each[name][1] < 1e-6 for name in NAMES)
    assert captions.bootstrap(references, hypotheses, samples=5) == expected.bootstrap(samples=5)


# What Stanford's PTBTokenizer 3.4.1 with the COCO list of punctuation gives: tested without Java too.
CUTS = {
    "": "",
    " . ": "",
    "A man , in a T-shirt .": "a man in a t-shirt",
    "It's the dogs' ball, isn't it?": "it 's the dogs ball is n't it",
    "they'd we've I'm you'll he's": "they 'd we 've i 'm you 'll he 's",
    "don’t the girl’s “dog” ‘cat’": "do n't the girl 's dog cat",
    "I cannot, gonna Gotta wanna lemme gimme cannots": "i can not gon na got ta wan na lem me gim me cannots",
    "ain't y'all ma'am o'clock O'Brien l'oiseau": "ai n't y' all ma'am o'clock o'brien l'oiseau",
    "'tis 'twas rock 'n' roll rock'n'roll 'em 'til": "'t is 't was rock 'n' roll rock 'n' roll 'em 'til",
    "'single' \"double\" ``latex''": "single double latex",
    "the '90s, the 1990's and '05": "the '90s the 1990 's and '05",
    "(brown) [a] {b}": "-lrb- brown -rrb- -lsb- a -rsb- -lcb- b -rcb-",
    "a 2-year-old, black-and-white; tri-colored": "a 2-year-old black-and-white tri-colored",
    "running -- very fast - x-": "running very fast x",
    "and ... so.... wait… a–b—c": "and so wait a b c",
    "one----two -----": "one two -----",
    "hi! what?! no!! ok?": "hi what ?! no !! ok",
    "3.5 1,000 $5.00 50% 1/2 +5 -5": "3.5 1,000 $ 5.00 50 % 1/2 +5 -5",
    "10:30pm 5pm 3rd #1 #tag @home": "10:30 pm 5pm 3rd # 1 #tag @home",
    "1 1/2 cups ½": "1\u00a01/2 cups 1/2",
    "Mr. Smith of St. Ives vs. Dr. No. and etc.": "mr. smith of st. ives vs. dr. no and etc.",
    "the U.S. Army in D.C. at 5 p.m. e.g. now": "the u.s. army in d.c. at 5 p.m. e.g. now",
    "no. 5 says no. Mass. in mass. of plan B. The end": "no. 5 says no mass. in mass of plan b the end",
    "a dog.The cat a/b and/or w/ red/white/blue": "a dog.the cat a/b and/or w / red/white/blue",
    "AT&T R&B b&w black & white &amp; a&lt;b": "at&t r&b b & w black & white & a < b",
    "http://www.foo.com/bar. foo@bar.com": "http://www.foo.com/bar foo@bar.com",
    "<unk> a_b :) end": "<unk> a_b :-rrb- end",
    "café naïve ÉCOLE 東京 £5 €5 5¢ 5° 😀 a😀b": "café naïve école 東京 # 5 $ 5 5 cents 5 ° a b",
    "a*b 2+2=4 a\tb\u00a0c": "a * b 2 +2 = 4 a b c",
}


@pytest.mark.parametrize(("text", "tokens"), CUTS.items())
def test_tokenize(text, tokens):
    assert tokenize(text) == (tokens.split(" ") if tokens else [])


def cut_by_java(texts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    cut = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    return [cut[i][0].split(" ") if cut[i][0] else [] for i in range(len(texts))]


@needs_java
def test_tokenize_equals_the_coco_evaluation_on_hard_strings(capfd):
    texts = [text for text in CUTS if text.strip()] + ["the end"]
    assert [tokenize(text) for text in texts] == cut_by_java(texts)


@needs_java
def test_tokenize_equals_the_coco_evaluation_on_flickr8k(flickr8k, capfd):
    texts = [caption for split in flickr8k.values() for image in split for caption in image]
    different = [
        (text, tokenize(text), cut)
        for text, cut in zip(texts, cut_by_java(texts), strict=True)
        if tokenize(text) != cut
    ]
    assert len(texts) == 35_000 and different == []


def test_bootstrap():
    rng = np.random.default_rng(1)
    sets = [random_set(rng) for _ in range(12)]
    references, hypotheses = ([x for part in parts for x in part] for parts in zip(*sets, strict=True))
    statistics = References.of_tokens(references).compare_tokens(hypotheses)
    whole = statistics.score()
    wide, narrow = statistics.bootstrap(samples=400), statistics.bootstrap(samples=400, level=0.5)
    assert wide == statistics.bootstrap(samples=400, seed=0) != statistics.bootstrap(samples=400, seed=1)
    for name in NAMES:
        assert wide[name][0] < narrow[name][0] < whole[name] < narrow[name][1] < wide[name][1], name
    # The interval of a mean is known: 1.96 standard errors to each side.
    half = 1.96 * statistics.rouge_l.std() / np.sqrt(len(statistics))
    assert wide["rouge_l"] == pytest.approx(
        (whole["rouge_l"] - half, whole["rouge_l"] + half), abs=0.3 * half
    )


def test_bootstrap_samples_are_sets_of_images():
    rng = np.random.default_rng(2)
    references, hypotheses = random_set(rng)
    statistics = References.of_tokens(references).compare_tokens(hypotheses)
    drawn = rng.integers(len(references), size=len(references))
    sample = statistics._weighted(np.bincount(drawn, minlength=len(references)))
    again = References.of_tokens([references[i] for i in drawn]).compare_tokens(
        [hypotheses[i] for i in drawn]
    )
    np.testing.assert_allclose(sample[:5], list(again.score().values())[:5], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        sample[5], statistics.cider[drawn].mean()
    )  # document frequencies of the whole set


@pytest.mark.parametrize("by", ["cider", "bleu4"])
def test_floor_is_the_best_constant_caption(by):
    rng = np.random.default_rng(3)
    train = [[" ".join(tokens) for tokens in image] for _ in range(6) for image in random_set(rng)[0]]
    candidates = sorted({caption for image in train for caption in image})
    scores = {caption: captions.score(train, [caption] * len(train))[by] for caption in candidates}
    references = [["w0 w1", "w1"], ["w2 w3 w4"]]
    caption, floor = captions.floor(train, references, by)
    assert scores[caption] == pytest.approx(max(scores.values()), abs=1e-9)
    assert floor == captions.score(references, [caption] * 2)
    constant = {"cider": captions._constant_cider, "bleu4": captions._constant_bleu4}[by](References(train))
    for candidate in candidates:
        assert constant(captions._ngrams(tokenize(candidate))) == pytest.approx(scores[candidate], abs=1e-9)


def test_floor_and_ceiling_of_flickr8k(flickr8k):
    train, dev = flickr8k["train"][:1500], flickr8k["dev"][:400]
    _, floor = captions.floor(train, dev)
    assert 0.08 < floor["cider"] < 0.2
    assert 0.07 < captions.floor(train, dev, by="bleu4")[1]["bleu4"] < 0.11
    ceiling = captions.ceiling(flickr8k["dev"])
    assert ceiling["bleu4"] == pytest.approx(0.212, abs=0.0005)
    assert ceiling["cider"] == pytest.approx(0.804, abs=0.0005)


def test_ceiling_leaves_single_captions_out():
    references = [["a dog", "a dog runs"], ["a cat"], ["two birds", "birds", "two birds fly"]]
    expected = captions.score([["a dog runs"], ["birds", "two birds fly"]], ["a dog", "two birds"])
    assert captions.ceiling(references) == expected
    with pytest.raises(ValueError, match="two captions or more"):
        captions.ceiling([["a dog"]])


def test_signature():
    expected = f"captions|tok:ptb|beam:5|split:val|n:1000|refs:5|v:{__version__}"
    assert captions.signature(beam=5, split="val", n=1000, refs=5) == expected
    with pytest.raises(ValueError, match="separates"):
        captions.signature(split="val|test")


REFERENCES = [["a dog runs", "the dog is running"], ["a cat sleeps", "a sleeping cat"]]


@pytest.mark.parametrize(
    ("references", "hypotheses", "error", "message"),
    [
        (REFERENCES, ["a dog"], ValueError, "2 images have references, but 1 hypotheses came"),
        (REFERENCES, "ab", ValueError, "one text"),
        (REFERENCES, ["a dog", None], TypeError, r"hypotheses\[1\] is None, not text"),
        (REFERENCES, ["a dog", ["a", "cat"]], TypeError, r"hypotheses\[1\]"),
        ([["a dog"], []], ["a", "b"], ValueError, r"references\[1\] is empty.*leave the image out"),
        (["a dog", "a cat"], ["a", "b"], TypeError, r"references\[0\] is one text"),
        ([["a dog", 3]], ["a"], TypeError, r"references\[0\]\[1\] is 3, not text"),
        ([], [], ValueError, "No images to score"),
    ],
)
def test_bad_input(references, hypotheses, error, message):
    for function in (captions.score, captions.score_each, captions.bootstrap, captions.score_java):
        with pytest.raises(error, match=message):
            function(references, hypotheses)


def test_unknown_choice_of_floor():
    with pytest.raises(ValueError, match=r'"bleu".*Did you mean "bleu4"'):
        captions.floor(REFERENCES, REFERENCES, by="bleu")


def test_no_java(monkeypatch):
    monkeypatch.setenv("PATH", "")
    reasons = []
    assert captions.score_java(REFERENCES, ["a dog", "a cat"], report=reasons.append) == {
        "meteor": None,
        "spice": None,
    }
    assert len(reasons) == 2 and all("not computed: there is no java" in reason for reason in reasons)


@needs_java
def test_java_that_takes_too_long_or_fails(monkeypatch):
    monkeypatch.setattr(captions, "_JAVA", {"meteor": "pycocoevalcap.meteor.meteor.Meteor"})
    reasons = []
    assert captions.score_java(REFERENCES, ["a", "b"], timeout=0.05, report=reasons.append) == {
        "meteor": None
    }
    monkeypatch.setattr(captions, "_JAVA", {"meteor": "pycocoevalcap.meteor.meteor.Missing"})
    assert captions.score_java(REFERENCES, ["a", "b"], report=reasons.append) == {"meteor": None}
    assert reasons[0] == "meteor: not computed: it took longer than 0.05 s"
    assert "not computed: AttributeError" in reasons[1]


@needs_java
def test_meteor():
    scores = captions.score_java(REFERENCES, ["a dog runs", ""], timeout=120, report=print)
    assert set(scores) == {"meteor", "spice"}
    if scores["meteor"] is None:
        pytest.skip("METEOR does not run here; the line above says why")
    assert 0.2 < scores["meteor"] < 1
