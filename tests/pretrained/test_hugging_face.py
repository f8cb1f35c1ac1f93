"""Hugging Face's models, random and tiny: their outputs from our modules, and round trips to the bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.models.classifier import Classifier
from mmgen_jax.models.dual_encoder import DualEncoder
from mmgen_jax.nn import pixels
from mmgen_jax.nn.resnet import ResNet
from mmgen_jax.nn.text_transformer import TextTransformer
from mmgen_jax.nn.vit import ViT
from mmgen_jax.pretrained import names
from mmgen_jax.pretrained.load import flatten, load
from mmgen_jax.pretrained.write import write

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
EOS = 20  # of a vocabulary of 21
HF_ACTIVATION = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


@pytest.fixture(scope="module")
def texts():
    """int32 [3, 7]: words, the end-of-text token, then padding."""
    tokens = np.random.default_rng(1).integers(3, EOS, (3, 7)).astype(np.int32)
    for row, end in enumerate((2, 6, 4)):
        tokens[row, end:] = 0
        tokens[row, end] = EOS
    return tokens


def images(size, count=3):
    return np.random.default_rng(2).integers(0, 256, (count, size, size, 3), np.uint8)


def as_theirs(torch, image, statistics):
    x = np.asarray(pixels.normalise(jnp.asarray(image), statistics, jnp.float32))
    return torch.tensor(x.transpose(0, 3, 1, 2))


def vision(size, **more):
    """A ViT's fields, and the same for a Hugging Face config."""
    width, depth, heads, patch, side, activation = size
    fields = dict(width=width, depth=depth, heads=heads, patch=patch, image_size=side, mlp_ratio=2.0)
    config = dict(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, patch_size=patch, image_size=side,
        intermediate_size=2 * width, hidden_act=HF_ACTIVATION[activation], layer_norm_eps=1e-5,
    )  # fmt: skip
    return {**fields, "activation": activation, "epsilon": 1e-5, **more}, config


def text(size, **more):
    width, depth, heads, activation = size
    fields = dict(
        width=width, depth=depth, heads=heads, vocab_size=EOS + 1, eos=EOS, max_len=7, mlp_ratio=2.0
    )
    config = dict(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=2 * width,
        hidden_act=HF_ACTIVATION[activation], layer_norm_eps=1e-5, vocab_size=EOS + 1, max_position_embeddings=7,
        bos_token_id=1, eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    return {**fields, "activation": activation, "epsilon": 1e-5, **more}, config


CLIP = dict(class_token=True, pre_norm=True, patch_bias=False, pool="class")


def make_clip(vision_size, text_size, scan):
    image, image_config = vision(vision_size, **CLIP, scan=scan)
    words, words_config = text(text_size, causal=True, pool="end", scan=scan)
    config = transformers.CLIPConfig(text_config=words_config, vision_config=image_config, projection_dim=10)
    ours = DualEncoder(ViT(**image), TextTransformer(**words), 10, pixels="clip")
    return ours, transformers.CLIPModel(config), "hf_clip"


def make_siglip(vision_size, text_size, scan):
    image, image_config = vision(vision_size, pool="map", scan=scan)
    words, words_config = text(text_size, mask_padding=False, pool="last", scan=scan)
    config = transformers.SiglipConfig(
        text_config={**words_config, "projection_size": vision_size[0]}, vision_config=image_config
    )
    heads = dict(image_head="none", text_head="affine", temperature=0.1, bias=-10.0)
    ours = DualEncoder(ViT(**image), TextTransformer(**words), vision_size[0], **heads, pixels="half")
    return ours, transformers.SiglipModel(config), "hf_siglip"


DUAL = {
    "clip": (make_clip, (16, 2, 2, 4, 8, "quick_gelu"), (12, 2, 3, "quick_gelu"), False),
    "clip_scan": (make_clip, (12, 3, 3, 3, 9, "gelu"), (16, 2, 2, "gelu"), True),
    "siglip": (make_siglip, (16, 2, 2, 4, 8, "gelu_tanh"), (12, 2, 3, "gelu_tanh"), False),
    "siglip_scan": (make_siglip, (12, 3, 3, 3, 9, "gelu_tanh"), (16, 2, 2, "gelu_tanh"), True),
}


@pytest.mark.parametrize("case", DUAL)
def test_dual_encoders(case, torch, scramble, state, empty, flat, equal_names, run, same, texts, tmp_path):
    make, *sizes = DUAL[case]
    ours, theirs, dialect = make(*sizes)
    scramble(theirs).save_pretrained(tmp_path / "theirs")
    image = images(ours.image.image_size)
    params, variables = empty(ours, image, texts[:, None])
    params, variables, report = load(tmp_path / "theirs", params, variables)
    assert not (report.missing or report.left or report.mismatched or report.resized), report
    assert any("activation" in note for note in report.notes)

    with torch.no_grad():
        expect = theirs(
            input_ids=torch.tensor(texts).long(), pixel_values=as_theirs(torch, image, ours.pixels)
        )
    image_embed, text_embed = run(ours, params, variables, image, texts[:, None])
    np.testing.assert_allclose(image_embed, expect.image_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(text_embed[:, 0], expect.text_embeds.numpy(), atol=1e-4)
    logits = np.exp(params["logit_scale"]) * image_embed @ text_embed[:, 0].T + params.get("logit_bias", 0.0)
    np.testing.assert_allclose(logits, expect.logits_per_image.numpy(), atol=1e-4, rtol=1e-4)
    # Every token, before the pools.
    tower, inputs = (
        ours.image.clone(pool="none"),
        pixels.normalise(jnp.asarray(image), ours.pixels, jnp.float32),
    )
    tokens = expect.vision_model_output.last_hidden_state
    if dialect == "hf_clip":
        tokens = theirs.vision_model.post_layernorm(tokens)[:, 1:]
    grid = run(tower, params["image"], {}, inputs, train=False)
    np.testing.assert_allclose(grid.reshape(tokens.shape), tokens.detach().numpy(), atol=1e-4)
    hidden = run(ours.text.clone(pool="none"), params["text"], {}, texts, train=False)
    np.testing.assert_allclose(hidden, expect.text_model_output.last_hidden_state.numpy(), atol=1e-4)

    equal_names(names.to_theirs(flat(params, variables), dialect), state(theirs))
    assert write(tmp_path / "ours", ours, params, variables) == type(theirs).__name__
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    equal_names(state(back), state(theirs))
    with torch.no_grad():
        again = back(input_ids=torch.tensor(texts).long(), pixel_values=as_theirs(torch, image, ours.pixels))
    np.testing.assert_array_equal(again.logits_per_image.numpy(), expect.logits_per_image.numpy())
    fresh, _, _ = load(tmp_path / "ours", *empty(ours, image, texts[:, None]))
    same(fresh, params)


CLASSIFY = dict(class_token=True, pool="class")
SIZES = {"small": (16, 2, 2, 4, 8, "gelu"), "odd": (12, 3, 3, 3, 9, "gelu_tanh")}


@pytest.mark.parametrize("size", SIZES)
def test_vit(size, torch, scramble, state, empty, flat, equal_names, run, tmp_path):
    fields, config = vision(SIZES[size], **CLASSIFY)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**config, num_labels=5))
    scramble(theirs).save_pretrained(tmp_path / "theirs")
    ours, image = Classifier(ViT(**fields), 5, pixels="half"), images(fields["image_size"])
    params, variables, report = load(tmp_path / "theirs", *empty(ours, image, train=False))
    assert not (report.missing or report.left or report.mismatched), report
    inputs = as_theirs(torch, image, "half")
    with torch.no_grad():
        expect, hidden = theirs(inputs).logits.numpy(), theirs.vit(inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(run(ours, params, variables, image, train=False), expect, atol=1e-4)
    tower, x = ViT(**{**fields, "pool": "none"}), np.asarray(inputs).transpose(0, 2, 3, 1)
    grid = run(tower, params["tower"], {}, x, train=False)
    np.testing.assert_allclose(grid.reshape(3, -1, grid.shape[-1]), hidden[:, 1:], atol=1e-4)
    assert write(tmp_path / "ours", ours, params, variables) == type(theirs).__name__
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    equal_names(state(back), state(theirs))
    # Another class, and the names that transformers has in memory.
    torch.save(theirs.vit.state_dict(), tmp_path / "vit.pt")
    tower_params, _, report = load(tmp_path / "vit.pt", *empty(tower, x, train=False))
    equal_names(flat(tower_params, {}), flat(params["tower"], {}))
    assert report.left == ["pooler.dense.weight", "pooler.dense.bias"][: len(report.left)]


@pytest.mark.parametrize("size", [(16, 2, 2, "gelu"), (12, 3, 3, "gelu")])
def test_bert(size, torch, scramble, state, empty, flat, equal_names, run, texts, tmp_path):
    shape = dict(norm="post", segments=2, embed_norm=True, final_norm=False, pooler=True)
    fields, config = text(size, **shape, pool="first")
    theirs = scramble(transformers.BertModel(transformers.BertConfig(**config)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = TextTransformer(**fields)
    params, _, report = load(tmp_path / "theirs", *empty(ours, texts, train=False))
    assert not (report.missing or report.left or report.mismatched), report
    inside = np.cumsum(texts == EOS, axis=1) - (texts == EOS) == 0
    with torch.no_grad():
        expect = theirs(torch.tensor(texts).long(), attention_mask=torch.tensor(inside).long())
    pooled = run(ours, params, {}, texts, train=False)
    np.testing.assert_allclose(pooled, expect.pooler_output.numpy(), atol=1e-4)
    hidden = run(ours.clone(pool="none"), params, {}, texts, train=False)
    np.testing.assert_allclose(hidden[inside], expect.last_hidden_state.numpy()[inside], atol=1e-4)
    theirs_again = names.to_theirs(flat(params, {}), "hf_bert")
    equal_names(theirs_again, state(theirs))
    # As the published files have it: within a larger model, and with the names of its first years.
    old = {f"bert.{k}".replace("Norm.weight", "Norm.gamma"): v for k, v in theirs.state_dict().items()}
    torch.save({**old, "cls.predictions.bias": torch.zeros(21)}, tmp_path / "old.bin")
    again, _, report = load(tmp_path / "old.bin", *empty(ours, texts, train=False))
    equal_names(flat(again, {}), flat(params, {}))
    assert report.left == ["cls.predictions.bias"]
    # And back, as the text tower of a dual encoder.
    dual = DualEncoder(ViT(**vision(SIZES["small"], **CLASSIFY)[0]), ours, 6)
    write(tmp_path / "ours", dual, {"image": {}, "text": params}, part="text")
    equal_names(state(transformers.BertModel.from_pretrained(tmp_path / "ours")), state(theirs))


@pytest.mark.parametrize(("block", "stages", "width"), [("basic", (1, 2), 8), ("bottleneck", (2, 1, 1), 4)])
def test_resnet(block, stages, width, torch, scramble, state, empty, flat, equal_names, run, tmp_path):
    times = {"basic": 1, "bottleneck": 4}[block]
    config = transformers.ResNetConfig(
        embedding_size=width, hidden_sizes=[width * times * 2**i for i in range(len(stages))], depths=stages,
        layer_type=block, num_labels=5,
    )  # fmt: skip
    theirs = scramble(transformers.ResNetForImageClassification(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Classifier(ResNet(stages=stages, block=block, width=width, pool="mean"), 5)
    image = images(32)
    params, variables, report = load(tmp_path / "theirs", *empty(ours, image, train=False))
    assert not (report.missing or report.left or report.mismatched), report
    inputs = as_theirs(torch, image, "imagenet")
    with torch.no_grad():
        expect, grid = theirs(inputs).logits.numpy(), theirs.resnet(inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(run(ours, params, variables, image, train=False), expect, atol=1e-4)
    tower = ours.tower.clone(pool="none")
    parts = params["tower"], {"batch_stats": variables["batch_stats"]["tower"]}
    mine = run(tower, *parts, np.asarray(inputs).transpose(0, 2, 3, 1), train=False)
    np.testing.assert_allclose(mine, grid.transpose(0, 2, 3, 1), atol=1e-4)
    assert write(tmp_path / "ours", ours, params, variables) == type(theirs).__name__
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    equal_names(state(back), state(theirs))
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(
        json.dumps({**settings, "downsample_in_bottleneck": True})
    )
    with pytest.raises(ValueError, match="downsample_in_bottleneck"):
        load(tmp_path / "theirs", params, variables)


@pytest.mark.parametrize("part", ["image", "text"])
@pytest.mark.parametrize("case", ["clip", "siglip"])
def test_a_tower_alone(case, part, torch, scramble, state, empty, same, texts, tmp_path):
    """Their tower classes, whose names lack the whole model's prefix, to our towers and back."""
    make, *sizes = DUAL[case]
    ours, whole, _ = make(*sizes)
    theirs = getattr(scramble(whole), {"image": "vision_model", "text": "text_model"}[part])
    torch.save(theirs.state_dict(), tmp_path / "tower.pt")
    inputs = {"image": images(8).astype(np.float32), "text": texts}[part]
    params, _, report = load(tmp_path / "tower.pt", *empty(getattr(ours, part), inputs, train=False))
    assert not (report.missing or report.mismatched), report
    whole.save_pretrained(tmp_path / "whole")
    dual, variables, _ = load(tmp_path / "whole", *empty(ours, images(8), texts[:, None]))
    same(params, dual[part])
    name = write(tmp_path / "ours", ours, dual, variables, part=part)
    back = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    have, want = state(back), state(whole)
    for key, x in have.items():
        full = key if key in want else f"{'vision' if part == 'image' else 'text'}_model.{key}"
        assert x.tobytes() == want[full].tobytes(), key
    assert len(have) >= len(state(theirs))


def test_every_name_of_the_published_clip_has_its_place(torch):
    """ViT-B/32 at full size, where nothing but names and shapes exists."""
    image, image_config = vision((768, 12, 12, 32, 224, "quick_gelu"), **{**CLIP, "mlp_ratio": 4.0})
    words, words_config = text((512, 12, 8, "quick_gelu"), causal=True, pool="end", mlp_ratio=4.0)
    sizes = dict(vocab_size=49408, max_len=77, eos=49407)
    ours = DualEncoder(ViT(**image), TextTransformer(**{**words, **sizes}), 512)
    inputs = jnp.zeros((1, 224, 224, 3), jnp.uint8), jnp.zeros((1, 1, 77), jnp.int32)
    slots = flatten({"params": jax.eval_shape(lambda: ours.init(jax.random.key(0), *inputs))["params"]})
    image_config["intermediate_size"] = 3072
    words_config |= dict(intermediate_size=2048, vocab_size=49408, max_position_embeddings=77)
    with torch.device("meta"):
        config = transformers.CLIPConfig(
            text_config=words_config, vision_config=image_config, projection_dim=512
        )
        shapes = {k: tuple(v.shape) for k, v in transformers.CLIPModel(config).state_dict().items()}
    key, renamed, known = names.recognise(shapes)
    assert (key, known) == ("hf_clip", len(shapes))
    placed = list(names.concrete(names.HF_CLIP, slots, renamed))
    assert {theirs for leaf in placed for theirs in leaf.theirs} == set(shapes)
    assert {path for leaf in placed for path in leaf.ours} == set(slots)
    for total in (shapes.values(), (slot.shape for slot in slots.values())):
        assert sum(np.prod(shape, dtype=int) for shape in total) == 151_277_313
