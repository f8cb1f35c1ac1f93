"""Partial loads say what they did, positions are resized, and our own runs start other models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core.checkpoint import Checkpointer, CheckpointError
from mmgen_jax.core.state import State
from mmgen_jax.models.classifier import Classifier
from mmgen_jax.models.dual_encoder import DualEncoder
from mmgen_jax.nn.resnet import ResNet
from mmgen_jax.nn.text_transformer import TextTransformer
from mmgen_jax.nn.vit import ViT
from mmgen_jax.pretrained import names
from mmgen_jax.pretrained.load import load, load_all

VIT = dict(width=8, depth=2, heads=2, patch=2, image_size=8, mlp_ratio=2.0)
CLIP = dict(class_token=True, pre_norm=True, patch_bias=False, pool="class")
TEXT = TextTransformer(vocab_size=11, eos=10, max_len=6, width=8, depth=1, heads=2, causal=True, pool="end")
TEXTS = np.full((2, 1, 6), 10, np.int32)
DUAL = DualEncoder(ViT(**VIT, **CLIP), TEXT, 6)


def image(side=8):
    return np.zeros((2, side, side, 3), np.uint8)


def pixels(side=8):
    return np.zeros((2, side, side, 3), np.float32)


@pytest.fixture
def save(flat, tmp_path):
    """save(params, variables, dialect) -> a safetensors file of another library's names; more: arrays to add."""
    from safetensors.numpy import save_file

    def write(params, variables, dialect, **more):
        path = tmp_path / "weights.safetensors"
        save_file({**names.to_theirs(flat(params, variables), dialect), **more}, path)
        return path

    return write


@pytest.fixture
def dual(empty, random_params):
    params, variables = empty(DUAL, image(), TEXTS)
    return random_params(params), variables


def test_ours_to_theirs_and_back(dual, save, empty, random_params, same, flat):
    """What we trained survives the way there and back, to the bit; stacked blocks become single ones and again stacked."""
    for dialect in ("hf_clip", "openai_vit"):
        params, variables, report = load(save(*dual, dialect), *empty(DUAL, image(), TEXTS))
        same(params, dual[0])
        assert str(report).startswith(report.source) and len(str(report).splitlines()) == 1
    net = Classifier(ResNet((1, 1), "bottleneck", 4, pool="mean"), 3)
    params, variables = (random_params(x) for x in empty(net, image(32), train=False))
    for dialect in ("hf_resnet", "torch_resnet"):
        fresh = load(save(params, variables, dialect), *empty(net, image(32), train=False))
        same(fresh[:2], (params, variables))
    for fields in ({"class_token": True, "pool": "class"}, {"pool": "map"}):
        loop, plain = (ViT(**VIT, **fields, scan=scan) for scan in (True, False))
        params = random_params(empty(loop, pixels(), train=False)[0])
        for dialect in (
            ("timm_vit", "hf_siglip") if fields["pool"] == "map" else ("hf_vit", "torchvision_vit")
        ):
            path = save(params, {}, dialect)
            same(load(path, *empty(loop, pixels(), train=False))[0], params)
            single, _, report = load(path, *empty(plain, pixels(), train=False))
            assert not report.missing
            same(single["block2"], jax.tree.map(lambda x: x[1], params["blocks"]))
    shape = dict(
        norm="post", segments=2, embed_norm=True, final_norm=False, causal=False, pool="first", pooler=True
    )
    bert = TEXT.clone(**shape)
    params = random_params(empty(bert, TEXTS[:, 0], train=False)[0])
    same(load(save(params, {}, "hf_bert"), *empty(bert, TEXTS[:, 0], train=False))[0], params)


def test_a_part_of_a_file_and_a_part_of_a_model(dual, save, empty, random_params, same):
    """A grid tower from a whole CLIP, deeper and with another head: what is not there stays as initialised."""
    path = save(*dual, "hf_clip", **{"extra.weight": np.zeros(3, np.float32)})
    tower = ViT(**{**VIT, "depth": 3}, **{**CLIP, "pool": "none"})
    start = random_params(empty(tower, pixels(), train=False)[0], seed=1)
    params, _, report = load(path, start, {})
    for name in ("embed", "block1", "block2", "norm", "class_token"):
        same(params[name], dual[0]["image"][name])
    same(params["block3"], start["block3"])
    assert all(name.startswith("block3/") for name in report.missing) and len(report.missing) == 12
    told = str(report)
    assert "block3/* (12)" in told and "text_model.* (" in told and "extra.weight" in told, told
    other = Classifier(ViT(**VIT, **CLIP), 4)
    start = random_params(empty(other, image(), train=False)[0], seed=2)
    params, _, report = load(path, start, {})
    same(params["tower"], dual[0]["image"])
    same(params["head"], start["head"])
    assert sorted(report.missing) == ["head/bias", "head/kernel"]
    # Of a stack of blocks, those that the file has.
    loop = tower.clone(scan=True)
    start = random_params(empty(loop, pixels(), train=False)[0], seed=3)
    params, _, _ = load(path, start, {})
    np.testing.assert_array_equal(
        params["blocks"]["qkv"]["kernel"][1], dual[0]["image"]["block2"]["qkv"]["kernel"]
    )
    np.testing.assert_array_equal(params["blocks"]["qkv"]["kernel"][2], start["blocks"]["qkv"]["kernel"][2])


def test_what_does_not_fit_is_told_and_stays(dual, save, empty, random_params, same):
    wider = DUAL.clone(text=TEXT.clone(vocab_size=13))
    start = random_params(empty(wider, image(), TEXTS)[0], seed=1)
    params, _, report = load(save(*dual, "hf_clip"), start)
    assert report.mismatched == [("text/embed", (11, 8), (13, 8))]
    same(params["text"]["embed"], start["text"]["embed"])
    same(params["text"]["block1"], dual[0]["text"]["block1"])
    assert "stays as initialised: text/embed is [11, 8] there and [13, 8] here" in str(report)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), start)
    assert load(save(*dual, "hf_clip"), half)[0]["image"]["norm"]["scale"].dtype == jnp.bfloat16


def test_another_architecture_is_refused(dual, save, empty, random_params, tmp_path):
    path = save(*dual, "openai_vit")
    big = ViT(**{**VIT, "width": 12}, **CLIP)
    with pytest.raises(
        ValueError, match=r"other shapes, 0 fit:\n.*(\n.*)*class_token: \[8\] there, \[12\] here"
    ) as caught:
        load(path, *empty(big, pixels(), train=False))
    assert str(path) in str(caught.value) and "OpenAI CLIP with a ViT" in str(caught.value)
    net = ResNet((1, 1), "basic", 4)
    with pytest.raises(
        ValueError, match=r"There: ln_final.bias \[8\], .*; here: stage1_block1/conv1/kernel \[3, 3, 4, 4\], "
    ):
        load(path, *empty(net, pixels(32), train=False))
    with pytest.raises(ValueError, match="give init_from in the part of the model"):
        load(path, {"encoder": dual[0]["image"], "decoder": {"embed": np.zeros((3, 2), np.float32)}})
    from safetensors.numpy import save_file

    save_file({f"decoder.{i}.w": np.zeros(2, np.float32) for i in range(9)}, tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"no model that is known here: of its 9 arrays \(decoder.0.w, .*Known: Hugging Face"
    ):
        load(tmp_path / "other", dual[0])
    odd = {"visual.positional_embedding": np.zeros((12, 8), np.float32)}
    with pytest.raises(
        ValueError, match=r"visual.positional_embedding \[12, 8\] \(12 positions are no square grid"
    ):
        load(save(*dual, "openai_vit", **odd), dual[0])


@pytest.mark.parametrize("side", [6, 14])
def test_positions_are_resized_as_pytorch_does(side, torch, dual, save, empty):
    """A grid of 4 x 4 to 3 x 3 and to 7 x 7; the class token's own stays."""
    tower = ViT(**{**VIT, "image_size": side}, **CLIP)
    params, _, report = load(save(*dual, "hf_clip"), *empty(tower, pixels(side), train=False))
    grid = torch.tensor(dual[0]["image"]["position"]).permute(2, 0, 1)[None]
    sized = torch.nn.functional.interpolate(grid, (side // 2, side // 2), mode="bicubic", antialias=True)
    np.testing.assert_allclose(params["position"], sized[0].permute(1, 2, 0).numpy(), atol=1e-5)
    np.testing.assert_array_equal(params["class_position"], dual[0]["image"]["class_position"])
    assert report.resized == [("position", (4, 4), (side // 2, side // 2))]
    assert f"resized: position from 4x4 to {side // 2}x{side // 2}" in str(report)


def test_the_pools_and_the_texts_positions(save, empty, random_params, torch):
    fields = dict(stages=(1, 1), block="bottleneck", width=4, stem="deep", antialias=True, pool="attention")
    net, larger = (ResNet(**fields, pool_heads=2, image_size=side) for side in (32, 48))
    params, variables = (random_params(x) for x in empty(net, pixels(32), train=False))
    new, _, report = load(save(params, variables, "openai_resnet"), *empty(larger, pixels(48), train=False))
    assert report.resized == [("pool/position", (4, 4), (6, 6))]
    np.testing.assert_array_equal(new["pool"]["position"][0], params["pool"]["position"][0])
    grid = torch.tensor(params["pool"]["position"][1:]).reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
    np.testing.assert_allclose(new["pool"]["position"][1:], grid[0].flatten(1).T.numpy(), atol=1e-5)
    text = random_params(empty(TEXT, TEXTS[:, 0], train=False)[0])
    path = save(text, {}, "hf_clip")
    short = TEXT.clone(max_len=4)
    new, _, report = load(path, *empty(short, TEXTS[:, 0, :4], train=False))
    np.testing.assert_array_equal(new["position"], text["position"][:4])
    assert report.resized == [("position", (6,), (4,))]
    _, _, report = load(path, *empty(TEXT.clone(max_len=8), TEXTS[:, 0], train=False))
    assert report.mismatched == [("position", (6, 8), (8, 8))]


# --- our own runs ---


@pytest.fixture(scope="module")
def workdir(empty, random_params, tmp_path_factory):
    """A run of a dual encoder with an averaged copy of its parameters; -> (workdir, what it averaged, batch statistics)."""
    model = DUAL.clone(image=ResNet((1, 1), "basic", 4, pool="mean"))
    params, variables = (random_params(x) for x in empty(model, image(32), TEXTS))
    average = random_params(params, seed=1)
    folder = tmp_path_factory.mktemp("runs") / "dual"
    state = State(
        jnp.int32(3),
        jax.random.key(0),
        {"model": params},
        {"model": variables},
        {"model": ()},
        {"model": average},
    )
    state = jax.tree.map(jnp.asarray, state)
    checkpointer = Checkpointer(folder / "checkpoints", facts={"tokenizer": "words"})
    checkpointer.save(3, state)
    checkpointer.close()
    (folder / "config.json").write_text("{}")
    return folder, average, variables["batch_stats"]


def test_a_run_starts_the_same_model_and_another_ones_tower(workdir, empty, same):
    folder, average, statistics = workdir
    model = DUAL.clone(image=ResNet((1, 1), "basic", 4, pool="mean"))
    params, variables, report = load(folder, *empty(model, image(32), TEXTS), tokenizer="words")
    same((params, variables), (average, {"batch_stats": statistics}))
    assert "step 3, model" in report.source and not report.notes
    _, _, report = load(folder, *empty(model, image(32), TEXTS), tokenizer="others")
    assert report.notes == ["its tokenizer is another one: the vectors of text/embed belong to other words"]
    # The captioner's encoder: the image tower as a grid, within another model.
    encoder, parts = empty(ResNet((1, 1), "basic", 4), pixels(32), train=False)
    params = {"model": {"encoder": encoder, "decoder": {"out": np.ones(3, np.float32)}}}
    variables = {"model": {"batch_stats": {"encoder": parts["batch_stats"]}}}
    params, variables, (report,) = load_all(
        params, variables, {("model", "encoder"): folder}, tokenizer="others"
    )
    same(params["model"]["encoder"], average["image"])
    same(variables["model"]["batch_stats"]["encoder"], statistics["image"])
    assert report.source.startswith(f"model/encoder from {folder} (step 3, model/image)")
    assert not report.notes and not report.left and str(report).endswith("arrays taken")
    text = empty(TEXT, TEXTS[:, 0], train=False)
    params, _, report = load(folder, *text)
    same(params, average["text"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_that_does_not_fit_or_is_damaged_is_refused(workdir, empty, tmp_path):
    folder, _, _ = workdir
    with pytest.raises(ValueError, match=r"stage1_block1/conv1/kernel: \[3, 3, 4, 4\] there"):
        load(folder, *empty(ResNet((1, 1), "basic", 8), pixels(32), train=False))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="No checkpoint"):
        load(tmp_path, *empty(TEXT, TEXTS[:, 0], train=False))
