"""scripts/search.py on an untrained dual encoder: index, queries of both kinds, FAISS, errors that a person can read."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mmgen_jax import search
from mmgen_jax.data.scenes import Scenes
from mmgen_jax.evaluate import load
from mmgen_jax.experiment import Experiment
from mmgen_jax.search import Index, nearest

ROOT = Path(__file__).resolve().parents[1]

SIZE, MAX_LEN = 32, 12


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def make_run(load_config):
    """make_run(workdir, seed, steps, spoil): the workdir of a run that has its first weights only."""

    def make(workdir, seed=0, steps=(2, 4), spoil=1.0):
        scenes = dict(name="scenes", size=SIZE, length=8)
        config = load_config("dual_encoder_scenes.py", seed=seed)
        config.task.model = dict(
            image=dict(name="convnet", widths=(8,), pool="mean"),
            text=dict(name="text_rnn", cell="gru", features=8, embed_features=8, max_len=MAX_LEN),
            embed_dim=8,
        )
        config.optimizer.ema = 0.0  # the parameters themselves are searched with
        config.data.source = dict(scenes, split="train", length=64)
        config.data.tokenizer.examples = 64
        config.data.batch_size = 8
        config.data.transforms = f"text({MAX_LEN})"
        transforms = f"text({MAX_LEN}, which='first')"
        config.evals = dict(
            test=dict(
                name="retrieval", source=dict(scenes, split="test"), transforms=transforms, batch_size=8
            )
        )
        experiment = Experiment(config, workdir)
        experiment.settle()
        checkpointer = experiment.checkpointer()
        state = experiment.init()
        for step in steps:
            params = jax.tree.map(lambda x: x * spoil * (1.0 + 0.1 * step), state.params)
            checkpointer.save(step, state.replace(params=params))
        checkpointer.wait()
        checkpointer.close()
        return workdir

    return make


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def photos(tmp_path):
    """A folder with five pictures, two of them equal; one broken, one no picture, one name that looks like markup."""
    folder = tmp_path / "photos"
    scenes = Scenes(split="test", size=SIZE, length=8)
    for i, name in enumerate(("b.png", "a [red].png", "below/c.PNG", "z.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[i]["image"]).save(folder / name)
    shutil.copy(folder / "b.png", folder / "below" / "b_again.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run, without an index."""
    return shutil.copytree(run, tmp_path / "own")


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_index_then_query(script, own, photos, tmp_path):
    status, out, err = script("search", "--workdir", own, "index", photos)
    assert (status, out) == (
        0,
        f"5 images in {own}/index/photos.npz: 5 embedded, 0 as they were, 1 skipped\n",
    )
    assert err.startswith(f"skipped {photos}/broken.jpg: ")
    index = Index.read(own / "index" / "photos.npz")
    assert index.paths == ["a [red].png", "b.png", "below/b_again.png", "below/c.PNG", "z.png"]
    assert index.embeddings.shape == (5, 8) and index.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(index.embeddings, axis=1), 1.0, atol=1e-6)

    sheet = tmp_path / "sheets" / "found.png"
    query = ("query", photos / "b.png", "a red square", "--k", 3)
    status, out, err = script("search", "--workdir", own, *query, "--json", "--picture", sheet)
    assert (status, err) == (0, "")
    found = lines(out)
    assert [(line["query"], line["rank"]) for line in found] == [
        (asked, rank) for asked in (str(photos / "b.png"), "a red square") for rank in (1, 2, 3)
    ]
    # Itself and its copy, in order of path.
    assert [line["path"] for line in found[:2]] == [f"{photos}/b.png", f"{photos}/below/b_again.png"]
    assert found[0]["score"] == found[1]["score"] == 1.0
    for part in (found[:3], found[3:]):
        assert [line["score"] for line in part] == sorted((line["score"] for line in part), reverse=True)
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.width > 300 and picture.height > 300

    status, out, err = script("search", "--workdir", own, *query)
    assert (status, err) == (0, "")
    # Nothing in a name or a query is taken for markup.
    status, table, _ = script("search", "--workdir", own, "query", photos / "a [red].png", "[b]a circle")
    assert status == 0 and table.count(f"{photos}/a [red].png") == 3 and "[b]a circle" in table
    for line in found:
        assert any(line["path"] in row and f"{line['score']:.4f}" in row for row in out.splitlines())


def test_scores_are_those_of_the_model(script, own, photos):
    """A file with the pixels of a scene, and its caption, take the same way as in the run's evaluation."""
    script("search", "--workdir", own, "index", photos)
    scenes = Scenes(split="test", size=SIZE, length=8)
    caption = next(c for i in range(8) for c in scenes.captions(i) if len(c.split()) <= MAX_LEN - 2)
    experiment, params, variables, _ = load(own)
    predict = experiment.predictor(params, variables)
    images = np.stack([scenes[i]["image"] for i in range(8)])
    ids = [1, *experiment.pipeline.tokenizer.encode(caption), 2]
    tokens = np.zeros((8, 1, MAX_LEN), np.int32)
    tokens[:, 0, : len(ids)] = ids
    image = predict("embed_image", {"image": images})[0]["image"]
    text = predict("embed_text", {"tokens": tokens})[0]["text"]
    expected = dict(zip(("b.png", "a [red].png", "below/c.PNG", "z.png"), image @ text[0, 0], strict=False))
    _, out, _ = script("search", "--workdir", own, "query", "--json", caption)
    scores = {line["path"].removeprefix(f"{photos}/"): line["score"] for line in lines(out)}
    for name, score in expected.items():
        assert scores[name] == pytest.approx(score, abs=1e-5)


def test_indexing_again_embeds_only_what_is_new(script, own, photos, monkeypatch):
    script("search", "--workdir", own, "index", photos)
    before = Index.read(own / "index" / "photos.npz")
    Image.new("RGB", (9, 9), "red").save(photos / "m.png")
    Image.new("RGB", (9, 9), "blue").save(photos / "z.png")
    (photos / "b.png").unlink()
    _, out, _ = script("search", "--workdir", own, "index", photos)
    assert ": 2 embedded, 3 as they were, 1 skipped" in out
    after = Index.read(own / "index" / "photos.npz")
    assert after.paths == ["a [red].png", "below/b_again.png", "below/c.PNG", "m.png", "z.png"]
    np.testing.assert_array_equal(after.embeddings[:3], before.embeddings[[0, 2, 3]])
    assert not np.array_equal(after.embeddings[4], before.embeddings[4])
    # Another checkpoint's embeddings are of no use.
    _, out, _ = script("search", "--workdir", own, "--step", 2, "index", photos)
    assert ": 5 embedded, 0 as they were" in out


def test_neither_training_nor_evaluation_data_is_needed(script, run, photos, tmp_path):
    """A run from files that are gone: tokenizer, shapes and transforms are in its workdir."""
    workdir = shutil.copytree(run, tmp_path / "elsewhere")
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    gone = {"name": "jsonl", "path": "/no/such/folder/data.jsonl"}
    config["data"]["source"] = config["evals"]["test"]["source"] = gone
    pipeline = f"decode | resize({SIZE}) | center_crop({SIZE}) | text({MAX_LEN})"
    config["data"]["transforms"] = config["evals"]["test"]["transforms"] = pipeline
    path.write_text(json.dumps(config))
    assert script("search", "--workdir", workdir, "index", photos)[0] == 0
    status, out, _ = script("search", "--workdir", workdir, "query", "--json", photos / "z.png")
    assert status == 0 and lines(out)[0]["path"] == f"{photos}/z.png"
    (workdir / "example.json").unlink()
    status, _, err = script("search", "--workdir", workdir, "query", "a red square")
    assert status == 1 and "/no/such/folder/data.jsonl" in err


@pytest.mark.parametrize("count", [1, 5, 40, 300])
def test_nearest_is_exact_and_ties_go_by_row(count, monkeypatch):
    rng = np.random.default_rng(count)
    embeddings = unit(rng.normal(size=(count, 24)))
    embeddings[count // 2 :: 7] = embeddings[count // 3]
    queries = unit(np.concatenate([rng.normal(size=(3, 24)), embeddings[count // 3][None]]))
    exact = np.round(embeddings.astype(np.float64) @ queries.astype(np.float64).T, search.DIGITS)
    monkeypatch.setitem(sys.modules, "faiss", None)
    plain = list(nearest(embeddings, queries, 7))
    for (rows, scores), column in zip(plain, exact.T, strict=True):
        order = sorted(range(count), key=lambda i: (-column[i], i))[:7]
        assert rows.tolist() == order
        np.testing.assert_allclose(scores, column[order], atol=1e-6)


def test_faiss_gives_the_same_answers(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its SWIG wrapper
        pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    embeddings = unit(rng.normal(size=(2000, 16)))
    embeddings[100:1900:3] = embeddings[50]
    embeddings[1:40] = unit(embeddings[50] + 1e-7 * rng.normal(size=(39, 16)))
    queries = unit(np.concatenate([rng.normal(size=(5, 16)), embeddings[50][None]]))
    for k in (1, 10, 5000):
        found = list(nearest(embeddings, queries, k))
        with monkeypatch.context() as context:
            context.setitem(sys.modules, "faiss", None)
            plain = list(nearest(embeddings, queries, k))
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])


def test_what_a_query_loses_is_told(script, own, photos):
    script("search", "--workdir", own, "index", photos)
    _, _, err = script("search", "--workdir", own, "query", "a red zeppelin", "a red square " * 5)
    assert '"a red zeppelin": not in the vocabulary: zeppelin' in err
    assert f'cut to {MAX_LEN} tokens: "a red square a red square a red square a"' in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "nowhere"], "No folder nowhere"),
        (["index", "{photos}/b.png"], "index takes a folder"),
        (["index", "{empty}"], "No image in"),
        (["index", "{broken}"], "Not one of the 1 images"),
        (["index", "{photos}", "--out", "{photos}/notes.txt"], "notes.txt is no whole index"),
        (["index", "{photos}", "--out", "{photos}/notes.txt/x"], "Cannot write --out"),
        (["index", "{photos}/below", "--out", "{index}"], "is the index of {photos}"),
        (["index", "{photos}", "--batch-size", "0"], "batch_size=0"),
        (["query", "a circle", "--index", "{photos}/nothing.npz"], "No index"),
        (["query", "a circle", "--index", "{photos}/notes.txt"], "notes.txt is no whole index"),
        (["query", "a circle", "--index", "{index}", "--k", "0"], "k=0"),
        (["query", "a circle", "--index", "{index}", "--picture", "{photos}"], "Cannot write --picture"),
        (["query", "nowhere.jpg", "--index", "{index}"], "No image nowhere.jpg"),
        (["query", "{photos}/broken.jpg", "--index", "{index}"], "broken.jpg cannot be read: truncated"),
        (["query", "zeppelin", "--index", "{index}"], "none of its words: zeppelin"),
        (["query", "", "--index", "{index}"], "it is empty"),
        (["query", "a circle"], "Make one: python scripts/search.py --workdir"),
    ],
)
def test_errors_are_one_line(script, own, photos, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    shutil.copy(photos / "broken.jpg", tmp_path / "broken")
    index = tmp_path / "index.npz"
    if "{index}" in arguments:
        assert script("search", "--workdir", own, "index", photos, "--out", index)[0] == 0
    places = dict(photos=photos, empty=tmp_path / "empty", broken=tmp_path / "broken", index=index)
    status, out, err = script("search", "--workdir", own, *(a.format(**places) for a in arguments))
    assert (status, out) == (1, "")
    assert message.format(**places) in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not (own / "index").exists(), "a mistake leaves no index behind"


def test_an_index_of_other_weights(script, make_run, own, photos, tmp_path):
    script("search", "--workdir", own, "--step", 2, "index", photos)
    for step in ([], ["--step", 4]):
        status, out, err = script("search", "--workdir", own, *step, "query", "a red square")
        assert (status, out) == (1, "")
        assert "made by other weights: step 2, and this is step 4. Index the folder again: " in err
        assert f"scripts/search.py --workdir {own} index {photos}" in err
    assert script("search", "--workdir", own, "--step", 2, "query", "a red square")[0] == 0
    other = make_run(tmp_path / "other", seed=1, steps=(2,))
    index = own / "index" / "photos.npz"
    _, _, err = script("search", "--workdir", other, "query", "a red square", "--index", index)
    # Another seed is another vocabulary too: the scenes that it was counted on are others.
    assert "made by" in err and "Index the folder again" in err
    found = Index.read(index)
    made_by = {**found.made_by, "tokenizer": "other"}
    Index(found.embeddings, found.paths, found.stamps, found.folder, made_by).save(index)
    _, _, err = script("search", "--workdir", own, "--step", 2, "query", "a red square")
    assert "made by a run with another tokenizer" in err


def test_a_damaged_index(own, photos, script, tmp_path):
    script("search", "--workdir", own, "index", photos)
    path = own / "index" / "photos.npz"
    content = path.read_bytes()
    for broken in (content[:200], content[:-30], b"", content.replace(b"made_by", b"made_on")):
        path.write_bytes(broken)
        status, _, err = script("search", "--workdir", own, "query", "a red square")
        assert status == 1 and "is no whole index" in err and "Traceback" not in err
    path.write_bytes(content)
    shutil.copy(path, own / "index" / "more.npz")
    _, _, err = script("search", "--workdir", own, "query", "a red square")
    assert "choose one with --index" in err and "more.npz" in err


def test_nan(script, make_run, photos, tmp_path):
    workdir = make_run(tmp_path / "nan", spoil=float("nan"))
    status, _, err = script("search", "--workdir", workdir, "index", photos)
    assert status == 1
    assert "The embedding of a [red].png is not finite: the weights of step 4" in err
    assert not (workdir / "index").exists()


def test_a_captioner_has_no_embeddings(script, tiny_run, photos):
    status, _, err = script("search", "--workdir", tiny_run[0], "index", photos)
    assert status == 1
    assert 'is of the task "captioning", which embeds nothing' in err


def test_a_picture_that_has_gone(script, own, photos, tmp_path):
    script("search", "--workdir", own, "index", photos)
    (photos / "z.png").unlink()
    status, out, _ = script(
        "search", "--workdir", own, "query", "a red square", "--picture", tmp_path / "x.png"
    )
    assert status == 0 and "z.png" in out
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_the_command_itself():
    done = subprocess.run(
        [sys.executable, "scripts/search.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "a red square above a circle" in done.stdout
