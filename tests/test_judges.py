"""Finished runs as judges of others: what they say, how they are known, and what is missing."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import judges
from mmgen_jax.core import config as config_lib
from mmgen_jax.experiment import Experiment, load
from mmgen_jax.nn import inception
from mmgen_jax.train import train

BATCH = 8


@pytest.fixture(scope="module")
def workdir(load_config, tmp_path_factory):
    """A classifier that hardly knows what it says."""
    path = tmp_path_factory.mktemp("runs") / "classifier_scenes"
    train(load_config("classifier_scenes.py:tiny"), path)
    return path


@pytest.fixture(scope="module")
def asking(load_config, workdir):
    """Another run that has it as a judge, and its predictor."""
    config = load_config(
        "dual_encoder_scenes.py:tiny", judges={"reader": {"name": "run", "workdir": str(workdir)}}
    )
    experiment = Experiment(config)
    state = experiment.init()
    return experiment, experiment.predictor(state.params, state.variables)


def images(size=32, rows=BATCH):
    image = np.random.default_rng(0).integers(0, 256, (rows, size, size, 3), np.uint8)
    return {"image": image, "mask": np.ones(rows, np.float32), "index": np.arange(rows, dtype=np.int32)}


def test_a_judge_says_what_its_run_says(asking, workdir):
    experiment, predict = asking
    judge, params, variables, _ = load(workdir)
    expected, _ = judge.predictor(params, variables)("classify", images())
    output, batch = predict("reader.classify", images())
    np.testing.assert_allclose(output["logits"], expected["logits"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch["image"], images()["image"])
    assert set(predict("reader.features", images())[0]) == {"features"}
    # The run's own predictions have no dot.
    assert set(predict("embed_image", images())[0]) == {"image"}
    # Judges are opened once, whatever parameters ask.
    assert experiment.judges["reader"]._opened is experiment.judges["reader"]._opened


def test_fingerprints_are_of_the_weights(asking, workdir):
    _, predict = asking
    own, other = predict.fingerprint(), predict.fingerprint("reader.classify")
    assert len(own) == len(other) == 8 and own != other
    assert predict.fingerprint("embed") == own
    assert predict.fingerprint("reader") == other
    judge, params, variables, _ = load(workdir, mesh={"data": -1, "fsdp": 1})
    assert judge.predictor(params, variables).fingerprint() == other
    changed = jax.tree.map(lambda x: x + 1, params)
    assert judge.predictor(changed, variables).fingerprint() != other


def test_texts_as_a_prediction_reads_them(asking):
    experiment, predict = asking
    tokens = predict.tokenise("embed_text", ["a red circle", "a star and " * 20])
    assert tokens.shape == (2, 1, 24) and tokens.dtype == np.int32
    tokenizer = experiment.pipeline.tokenizer
    assert tokenizer.decode(tokens[0, 0]) == "a red circle"
    assert tokens[1, 0, -1] == tokenizer.eos
    with pytest.raises(ValueError, match="a run without texts"):
        predict.tokenise("reader.classify", ["a red circle"])


def test_errors(asking, load_config, tmp_path):
    _, predict = asking
    with pytest.raises(ValueError, match=r'Unknown judge "raeder". Did you mean "reader"'):
        predict("raeder.classify", images())
    with pytest.raises(ValueError, match=r'Unknown prediction "clasify". Did you mean "classify"'):
        predict("reader.clasify", images())
    with pytest.raises(ValueError, match=r"reads images of \[32, 32, 3\], and these are \[64, 64, 3\]"):
        predict("reader.classify", images(64))

    def config(**spec):
        return load_config("classifier_scenes.py:tiny", judges={"reader": spec})

    missing = tmp_path / "runs" / "classifier_scenes"
    command = f"python scripts/train.py --config configs/classifier_scenes.py --workdir {missing}"
    with pytest.raises(FileNotFoundError, match=command):
        Experiment(config(name="run", workdir=str(missing)))
    # A run that has only begun.
    missing.mkdir(parents=True)
    (missing / "config.json").write_text(config_lib.to_json(load_config("classifier_scenes.py:tiny")))
    with pytest.raises(FileNotFoundError, match=f"has no checkpoint yet.*\n.*{command}"):
        Experiment(config(name="run", workdir=str(missing)))
    # One that only reads a finished run needs no judge until something asks it.
    predict = Experiment(config(name="run", workdir=str(missing)), finished=True).predictor({}, {})
    with pytest.raises(FileNotFoundError, match=command):
        predict("reader.classify", images())
    with pytest.raises(
        FileNotFoundError, match=r"judges.reader: no weights at nowhere/inception.pth.*give its path"
    ):
        Experiment(config(name="inception", weights="nowhere/inception.pth"))
    with pytest.raises(ValueError, match=r'Unknown name in judges.reader "rum". Did you mean "run"'):
        Experiment(config(name="rum", workdir=str(missing)))
    with pytest.raises(ValueError, match=r'Unknown key "wrkdir" in judges.reader. Did you mean "workdir"'):
        Experiment(config(name="run", wrkdir="x"))
    with pytest.raises(ValueError, match="has a dot"):
        judges.make({"a.b": {"name": "run"}}, layout=None, open_run=None)
    predict = Experiment(load_config("classifier_scenes.py:tiny")).predictor({}, {})
    with pytest.raises(ValueError, match='The judge "reader" is asked, and the config has none'):
        predict("reader.classify", images())


def test_inception_as_a_judge(load_config, monkeypatch, tmp_path):
    """The network itself is tested elsewhere; here a small one stands for it."""

    class Small:
        def apply(self, weights, image, *, train):
            assert image.shape[1:] == (299, 299, 3) and not train
            mean = jnp.mean(image, axis=(1, 2)) * weights["scale"]
            return inception.Outputs(image, mean, mean + 7, mean + 1)

    (tmp_path / "inception.pth").write_bytes(b"weights")
    monkeypatch.setattr(judges.pretrained, "read", lambda path: (Small(), {"scale": np.float32(2)}))
    spec = {"name": "inception", "weights": str(tmp_path / "inception.pth")}
    predict = Experiment(load_config("classifier_scenes.py:tiny", judges={"inception": spec})).predictor(
        {}, {}
    )
    grey = {**images(), "image": np.full((BATCH, 32, 32, 3), 192, np.uint8)}
    output, given = predict("inception.features", grey)
    np.testing.assert_allclose(output["features"], np.ones((BATCH, 3)), rtol=1e-6)
    # Those without the last bias, as the Inception score has them.
    np.testing.assert_allclose(output["logits"], 2 * np.ones((BATCH, 3)), rtol=1e-6)
    np.testing.assert_array_equal(given["index"], np.arange(BATCH))
    assert predict.fingerprint("inception.logits") == hashlib.sha256(b"weights").hexdigest()[:8]
    assert (predict.resize("inception.features"), predict.resize("generate")) == ("tf1", "none")
    with pytest.raises(ValueError, match="reads no texts"):
        predict.tokenise("inception.features", ["a"])
    with pytest.raises(ValueError, match=r'prediction of "inception" "feature". Did you mean "features"'):
        predict("inception.feature", grey)
    with pytest.raises(ValueError, match=r'judges.inception.resize "tf2"'):
        Experiment(load_config("classifier_scenes.py:tiny", judges={"inception": {**spec, "resize": "tf2"}}))
