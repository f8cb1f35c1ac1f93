"""Folders for transformers: which models have one, what stands beside the weights, and the script."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.experiment import Experiment
from mmgen_jax.models.dual_encoder import DualEncoder
from mmgen_jax.nn.resnet import ResNet
from mmgen_jax.nn.text_rnn import TextRnn
from mmgen_jax.nn.text_transformer import TextTransformer
from mmgen_jax.nn.vit import ViT
from mmgen_jax.pretrained.write import write

VIT = ViT(
    width=8,
    depth=1,
    heads=2,
    patch=4,
    image_size=8,
    class_token=True,
    pre_norm=True,
    patch_bias=False,
    pool="class",
)
TEXT = TextTransformer(vocab_size=11, eos=10, max_len=6, width=8, depth=1, heads=2, causal=True, pool="end")
DUAL = DualEncoder(VIT, TEXT, 6, pixels="clip", temperature=0.0)


@pytest.fixture
def params(empty, random_params):
    return random_params(empty(DUAL, np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 1, 6), 10, np.int32))[0])


@pytest.mark.parametrize(
    ("change", "part", "words"),
    [
        ({"text": TextRnn(vocab_size=11, eos=10, max_len=6)}, "all", ["CLIPModel", "is a TextTransformer, here a TextRnn"]),
        ({"image": ResNet((1,), "basic", pool="mean")}, "all", ["is a ViT, here a ResNet", "A tower alone may"]),
        ({"text": TEXT.clone(causal=False)}, "all", ["CLIPModel", "its text has causal=True, here False"]),
        ({"text": TEXT.clone(eos=2)}, "text", ["CLIPTextModel", "a token that is not 2"]),
        ({"image_head": "affine"}, "all", ["its model has image_head='linear', here 'affine'"]),
        ({"image": VIT.clone(pool="map")}, "image", ["its image has"]),
        ({"text": TEXT.clone(norm="post", causal=False)}, "text", ["has no class"]),
    ],
)  # fmt: skip
def test_a_model_that_transformers_lacks_is_told_in_what(change, part, words, params, tmp_path):
    with pytest.raises(ValueError, match="transformers has no class for this DualEncoder") as caught:
        write(tmp_path / "out", DUAL.clone(**change), params, part=part)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unknown_parts_are_refused(params, tmp_path):
    with pytest.raises(ValueError, match='Unknown part "images"'):
        write(tmp_path, DUAL, params, part="images")


def test_what_stands_beside_the_weights(params, tmp_path):
    """How pictures are normalised, and a tokenizer that writes itself; a loss without a scale leaves one of 1."""

    class Tokenizer:
        def write_hugging_face(self, folder):
            (folder / "vocab.json").write_text("{}")

    assert write(tmp_path, DUAL, params, tokenizer=Tokenizer()) == "CLIPModel"
    files = ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 8, "width": 8} and settings["image_mean"][0] == 0.48145466
    from safetensors.numpy import load_file

    assert load_file(tmp_path / "model.safetensors")["logit_scale"] == 0.0
    transformers = pytest.importorskip("transformers")
    assert transformers.CLIPConfig.from_pretrained(tmp_path).text_config.eos_token_id == 10


def test_the_captioners_grid_is_a_siglip_without_head(torch, empty, random_params, tmp_path):
    from mmgen_jax.models.captioner import Captioner, RnnDecoder

    transformers = pytest.importorskip("transformers")
    tower = ViT(width=8, depth=1, heads=2, patch=4, image_size=8)
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    params = random_params(empty(tower, x, train=False)[0])
    model = Captioner(tower, RnnDecoder(vocab_size=5))
    with pytest.raises(ValueError, match=r"its model is a .*, here a Captioner"):
        write(tmp_path, model, {"encoder": params})
    assert write(tmp_path, model, {"encoder": params}, part="image") == "SiglipVisionModel"
    theirs = transformers.SiglipVisionModel.from_pretrained(tmp_path).eval()

    with torch.no_grad():
        expect = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    grid = jax.jit(lambda p: tower.apply({"params": p}, x, train=False))(params)
    np.testing.assert_allclose(np.asarray(grid).reshape(1, 4, 8), expect, atol=1e-4)


def test_the_script_exports_a_run(load_config, script, torch, tmp_path):
    """The averaged parameters of a SigLIP, as transformers' class computes with them; then one of its towers."""
    transformers = pytest.importorskip("transformers")
    config = load_config("siglip_b16.py:tiny")
    with config.unlocked():
        config.data.source, config.data.transforms = dict(name="scenes", size=32, length=8), "text(16)"
        config.optimizer.ema = 0.9
    experiment = Experiment(config, tmp_path / "run")
    state = experiment.init()
    state = state.replace(ema=jax.tree.map(lambda x: x + jnp.float32(0.1), state.ema))
    experiment.settle()
    checkpointer = experiment.checkpointer()
    checkpointer.save(3, state)
    checkpointer.close()
    out = tmp_path / "out"
    status, told, error = script("export", "--workdir", tmp_path / "run", "--out", out)
    assert status == 0 and "step 3 as a SiglipModel" in told and "the run's tokenizer.json" in told, (
        told + error
    )
    rng = np.random.default_rng(0)
    image, tokens = rng.integers(0, 256, (2, 32, 32, 3), np.uint8), rng.integers(4, 9, (2, 1, 16))
    batch = {"image": jnp.asarray(image), "tokens": jnp.asarray(tokens, jnp.int32)}
    ours = jax.jit(experiment.task.predict["embed"])(state.ema, state.variables, batch, jax.random.key(0))
    pictures = torch.tensor(image.transpose(0, 3, 1, 2)).float() / 127.5 - 1
    with torch.no_grad():
        theirs = transformers.SiglipModel.from_pretrained(out).eval()(torch.tensor(tokens[:, 0]), pictures)
    np.testing.assert_allclose(ours["image"], theirs.image_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours["text"][:, 0], theirs.text_embeds.numpy(), atol=1e-4)
    status, told, error = script(
        "export", "--workdir", tmp_path / "run", "--out", tmp_path / "tower", "--part", "image"
    )
    assert status == 0 and "SiglipVisionModel" in told and "Texts" not in told, told + error
    status, _, error = script("export", "--workdir", tmp_path / "none", "--out", out)
    assert status == 1 and "config.json" in error
