"""Transforms: every image mode, broken images, augmentations by their rng, and the pipeline language."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data import image_transforms, text, text_transforms, transforms
from mmgen_jax.data.answers import Answers
from mmgen_jax.data.quarantine import BrokenExample
from mmgen_jax.data.transforms import parse

WORDS = text.Words(["a", "dog", "runs", "left", "cat"])
ANSWERS = Answers(["yes", "no", "2", "dog"])
CONTEXT = {"tokenizer": WORDS, "answers": ANSWERS}


def rng(index=0):
    return np.random.default_rng(index)


def encode(image, form="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def apply(pipeline, example, seed=0):
    generator = rng(seed)
    if not isinstance(example, dict):
        example = {"image": example, "captions": ["a dog"], "name": "x"}
    for transform in parse(pipeline, CONTEXT):
        example = transform(example, generator)
    return example


def decoded(data):
    return apply("decode", data)["image"]


def photo(height=40, width=60):
    """A smooth picture without symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype(
        np.uint8
    )


# ---------------- decode: every mode


def test_rgb_png_is_exact():
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(photo()))), photo())


def test_a_path_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(photo())))
    np.testing.assert_array_equal(decoded(str(tmp_path / "a.png")), photo())


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats_are_read_by_content(form):
    image = decoded(encode(Image.fromarray(photo()), form))
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - photo()).mean() < 12


def test_grey_and_one_bit():
    grey = photo()[:, :, 0]
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(grey))), np.repeat(grey[:, :, None], 3, -1))
    bits = Image.fromarray(grey > 100).convert("1")
    np.testing.assert_array_equal(decoded(encode(bits))[:, :, 0], np.where(grey > 100, 255, 0))


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(decoded(encode(palette)), [[[10, 20, 30], [200, 100, 50]]])
    np.testing.assert_array_equal(decoded(encode(palette, transparency=0)), [[[255] * 3, [200, 100, 50]]])
    half = decoded(encode(palette, transparency=b"\x80\xff"))[0, 0]
    np.testing.assert_allclose(half, np.array([10, 20, 30]) * 128 / 255 + 127, atol=1)


def test_alpha_is_laid_on_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    expected = [[[10, 20, 30], [255] * 3, [204] * 3]]
    np.testing.assert_allclose(decoded(encode(Image.fromarray(pixels))), expected, atol=1)
    grey = Image.fromarray(np.array([[[0, 255], [0, 0], [0, 51]]], np.uint8), "LA")
    np.testing.assert_allclose(decoded(encode(grey))[0, :, 1], [0, 255, 204], atol=1)


def test_a_transparent_colour_of_an_rgb_png_becomes_white():
    image = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8))
    np.testing.assert_array_equal(decoded(encode(image, transparency=(1, 2, 3))), [[[255] * 3, [9] * 3]])


def test_cmyk_jpeg():
    cmyk = Image.fromarray(photo()).convert("CMYK")
    image = decoded(encode(cmyk, "JPEG", quality=95))
    assert np.abs(image.astype(int) - photo()).mean() < 6


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(values)))[0, :, 0], [0, 1, 128, 255])
    big_endian = encode(Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes()), "TIFF")
    np.testing.assert_array_equal(decoded(big_endian)[0, :, 2], [0, 1, 128, 255])


def test_sixteen_bit_colour_png():
    rows = b"\0" + np.array([[65535, 32896, 0]], ">u2").tobytes()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    png = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decoded(b"\x89PNG\r\n\x1a\n" + png), [[[255, 128, 0]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    # What the camera stored so that the viewer sees `photo()`: the inverse of each orientation.
    upright = photo()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", exif=exif, quality=95)
    image = decoded(data)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 3


def test_arrays_pass_and_grey_ones_are_repeated():
    np.testing.assert_array_equal(decoded(photo()), photo())
    np.testing.assert_array_equal(decoded(photo()[:, :, 0])[:, :, 2], photo()[:, :, 0])
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], not float32"):
        decoded(photo().astype(np.float32))


def test_float_pixels_are_refused_with_the_remedy():
    with pytest.raises(BrokenExample, match="8 or 16 bits"):
        decoded(encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


# ---------------- decode: broken images


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.002, 0.3, 0.7])
def test_truncated(form, share):
    data = encode(Image.fromarray(rng().integers(0, 256, (64, 64, 3), np.uint8)), form)
    with pytest.raises(BrokenExample, match=r"^truncated"):
        decoded(data[: max(8, int(len(data) * share))])


def test_zero_bytes_text_and_missing_file(tmp_path):
    with pytest.raises(BrokenExample, match=r"^zero bytes$"):
        decoded(b"")
    with pytest.raises(BrokenExample, match=r"^not an image: 15 bytes that begin with '<html>"):
        decoded(b"<html>404</html>"[:15])
    with pytest.raises(BrokenExample, match=r"^missing file: "):
        decoded(str(tmp_path / "none.jpg"))


def bomb(side):
    """A PNG of a few bytes that declares side x side pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return (
        b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


@pytest.mark.parametrize("side", [9_000, 10_000, 60_000])
def test_decompression_bombs_are_refused_unread(side):
    with pytest.raises(BrokenExample, match=r"^decompression bomb: "):
        decoded(bomb(side))


def test_bombs_do_not_warn_and_the_limit_is_an_argument():
    with warnings.catch_warnings(record=True) as caught:
        transform = image_transforms.decode()
        with pytest.raises(BrokenExample, match="10000 x 10000 pixels declared"):
            transform({"image": bomb(10_000)}, rng())
    assert not caught
    with pytest.raises(BrokenExample, match="40 x 40 pixels declared, at most 1599"):
        apply("decode(max_pixels=1599)", encode(Image.new("RGB", (40, 40))))
    assert apply("decode(max_pixels=1600)", encode(Image.new("RGB", (40, 40))))["image"].shape == (40, 40, 3)


# ---------------- sizes and colours


def test_resize_and_center_crop():
    data = encode(Image.fromarray(photo(40, 60)))
    assert apply("decode | resize(20)", data)["image"].shape == (20, 30, 3)
    assert apply("decode | resize((7, 9))", data)["image"].shape == (7, 9, 3)
    np.testing.assert_array_equal(apply("decode | center_crop(30)", data)["image"], photo()[5:35, 15:45])
    assert apply("decode | center_crop((50, 100))", data)["image"].shape == (50, 100, 3)
    extreme = encode(Image.fromarray(photo(2, 300)))
    assert apply("decode | resize(16) | center_crop(16)", extreme)["image"].shape == (16, 16, 3)


@pytest.mark.parametrize("shape", [(40, 60), (1, 1), (3, 500), (500, 3)])
def test_random_resized_crop_keeps_its_shape(shape):
    data = encode(Image.fromarray(photo(*shape)))
    for seed in range(20):
        assert apply("decode | random_resized_crop((8, 12), 0.05)", data, seed)["image"].shape == (8, 12, 3)


def test_crops_never_leave_the_image():
    # Sizes whose quotients round badly: a box that is outside by one bit is an error in PIL.
    sizes = rng().integers(1, 700, (150, 2)).tolist()
    for seed, (height, width) in enumerate(sizes):
        image = np.zeros((height, width, 3), np.uint8)
        apply("random_resized_crop(7, min_area=0.9, ratio=1.7)", image, seed)
        apply("center_crop(333) | resize(5)", image)


def test_random_resized_crop_covers_area_and_ratio():
    # A picture whose colours are its coordinates tells which part was cut out.
    y, x = np.mgrid[:256, :256]
    image = np.stack([x, y, y], -1).astype(np.uint8)
    shares, ratios = [], []
    for seed in range(300):
        cut = apply("decode | random_resized_crop(64, min_area=0.25, ratio=1.5)", image, seed)["image"]
        height, width = np.ptp(cut[:, :, 1].astype(float)), np.ptp(cut[:, :, 0].astype(float))
        shares.append(width * height / 256**2)
        ratios.append(width / height)
    assert 0.2 < min(shares) < 0.3 and max(shares) > 0.85
    assert 0.62 < min(ratios) < 0.75 and 1.35 < max(ratios) < 1.6


def test_whole_image_crop_is_the_resized_image():
    data = encode(Image.fromarray(photo(40, 40)))
    crop = apply("decode | random_resized_crop(20, min_area=1.0, ratio=1.0)", data)["image"]
    np.testing.assert_array_equal(crop, apply("decode | resize(20)", data)["image"])


def test_color_jitter_matches_its_definition():
    pixels = rng(1).integers(60, 190, (8, 8, 3)).astype(np.uint8)
    result = apply("decode | color_jitter(0.2)", pixels, seed=5)["image"]
    brightness, contrast, saturation = 1 + 0.2 * (2 * rng(5).random(3) - 1)
    luma = np.array([0.299, 0.587, 0.114])
    grey = (pixels @ luma)[:, :, None]
    wanted = grey + saturation * (pixels - grey)
    wanted = grey.mean() + contrast * (wanted - grey.mean())
    np.testing.assert_allclose(result, brightness * wanted, atol=1.1)
    np.testing.assert_array_equal(apply("decode | color_jitter(0.0)", pixels)["image"], pixels)


def test_color_jitter_clips():
    white = np.full((4, 4, 3), 255, np.uint8)
    means = [apply("color_jitter(1.0)", white, seed)["image"].mean() for seed in range(10)]
    assert max(means) == 255 and min(means) < 200


# ---------------- shift


def test_shift_moves_all_by_as_much():
    """Each way, at most so far, edges repeated; frames of a video alike."""
    image, seen = photo(), set()
    height, width = image.shape[:2]
    for seed in range(60):
        moved = apply("shift(2)", image, seed)["image"]
        rows, columns = (
            np.clip(np.arange(n)[None] + np.arange(-2, 3)[:, None], 0, n - 1) for n in (height, width)
        )
        fits = [
            (y, x) for y in range(5) for x in range(5) if np.array_equal(moved, image[rows[y]][:, columns[x]])
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(5))
    np.testing.assert_array_equal(apply("shift(0)", image)["image"], image)


# ---------------- flip


@pytest.mark.parametrize("encoded", [True, False])
def test_flip_is_a_mirror(encoded):
    image = encode(Image.fromarray(photo())) if encoded else photo()
    np.testing.assert_array_equal(apply("decode | flip(1.0)", image)["image"], photo()[:, ::-1])
    np.testing.assert_array_equal(apply("decode | flip(0.0)", image)["image"], photo())
    results = [apply("decode | flip", image, seed)["image"] for seed in range(40)]
    flipped = sum(not np.array_equal(result, photo()) for result in results)
    assert 8 < flipped < 32


@pytest.mark.parametrize("word", ["left", "Right", "leftmost", "right-hand"])
def test_flip_leaves_captions_with_sides_alone(word):
    example = {"image": photo(), "captions": ["a dog", f"a cat to the {word} of it"]}
    np.testing.assert_array_equal(apply("flip(1.0)", example)["image"], photo())


def test_flip_takes_bright_for_no_side_and_never_changes_later_randomness():
    bright = {"image": photo(), "captions": ["a bright, upright dog"]}
    np.testing.assert_array_equal(apply("flip(1.0)", bright)["image"], photo()[:, ::-1])
    sided = {"image": photo(), "captions": ["left", "left", "left", "a", "dog"]}
    plain = {"image": photo(), "captions": ["cat", "cat", "cat", "a", "dog"]}
    for seed in range(5):
        a, b = (apply("flip | caption(3, 5)", e, seed)["tokens"] for e in (sided, plain))
        np.testing.assert_array_equal(np.where(a == 7, 8, a), b)


def test_flip_after_caption_says_what_is_wrong():
    with pytest.raises(ValueError, match="before caption"):
        apply("caption(5) | flip", photo())


# ---------------- captions


def tokens(pipeline, captions, seed=0):
    return apply(pipeline, {"image": photo(), "captions": captions, "name": "n"}, seed)["tokens"]


def test_caption_has_bos_eos_pad():
    result = tokens("caption(max_len=5)", ["A dog runs!"])
    np.testing.assert_array_equal(result, [[text.BOS, 4, 5, 6, text.EOS, text.PAD]])
    assert result.dtype == np.int32


def test_a_long_caption_is_cut_without_a_false_end():
    np.testing.assert_array_equal(tokens("caption(3)", ["a dog"]), [[text.BOS, 4, 5, text.EOS]])
    np.testing.assert_array_equal(tokens("caption(3)", ["a dog runs"]), [[text.BOS, 4, 5, 6]])
    np.testing.assert_array_equal(tokens("caption(2)", ["a dog runs"]), [[text.BOS, 4, 5]])


def test_captions_first_in_order_and_random_without_replacement():
    captions = ["a", "dog", "runs", "left", "cat"]
    first = tokens('caption(2, per_image=5, which="first")', captions)
    np.testing.assert_array_equal(first[:, 1], [4, 5, 6, 7, 8])
    np.testing.assert_array_equal(tokens('caption(2, 3, "first")', ["a", "dog"])[:, 1], [4, 5, 4])
    picked = [tokens("caption(2, per_image=3)", captions, seed)[:, 1] for seed in range(30)]
    assert all(len(set(row.tolist())) == 3 for row in picked)
    assert len({tuple(row) for row in picked}) > 10
    assert sorted(tokens("caption(2, per_image=4)", ["a", "dog"])[:, 1]) == [4, 4, 5, 5]


def test_the_final_example_has_only_what_a_batch_holds():
    assert apply("decode | caption(4)", photo()).keys() == {"image", "tokens"}
    assert apply("decode", photo()).keys() == {"image"}


def test_an_example_without_captions_is_an_error_with_its_name():
    for name in ("caption", "text"):
        with pytest.raises(ValueError, match=f"{name}: the example 'n' has no captions"):
            tokens(f"{name}(4)", [])


# ---------------- texts of a dual encoder


class Foreign(text.Words):
    """A tokenizer whose specials are those of some published weights."""

    kind = "foreign"
    pad, bos, eos = 9, 10, 11


def texts(pipeline, captions, seed=0, **more):
    return apply(pipeline, {"image": photo(), "captions": captions, "name": "n.jpg", **more}, seed)


def test_text_has_its_end_also_when_it_is_cut():
    result = texts("text(5)", ["A dog runs!"])
    assert result.keys() == {"image", "tokens", "text_mask", "cut"}
    np.testing.assert_array_equal(result["tokens"], [[text.BOS, 4, 5, 6, text.EOS]])
    assert [result[key].dtype for key in ("tokens", "text_mask", "cut")] == [np.int32, np.float32, np.float32]
    np.testing.assert_array_equal(result["cut"], [0])
    result = texts("text(4)", ["A dog runs!"])
    np.testing.assert_array_equal(result["tokens"], [[text.BOS, 4, 5, text.EOS]])
    np.testing.assert_array_equal(result["cut"], [1])
    np.testing.assert_array_equal(texts("text(2)", ["a"])["tokens"], [[text.BOS, text.EOS]])
    np.testing.assert_array_equal(texts("text(3)", ["a"])["tokens"], [[text.BOS, 4, text.EOS]])


def test_text_too_long_is_refused_with_name_length_and_remedy():
    message = (
        r"a caption of 'n\.jpg' has 5 tokens with BOS and EOS, the context 4: 'A dog runs!'.*Raise max_len"
    )
    with pytest.raises(ValueError, match=message):
        texts('text(4, too_long="refuse")', ["A dog runs!"])
    assert texts('text(5, too_long="refuse")', ["A dog runs!"])["cut"].sum() == 0


def test_text_repeats_are_masked_and_counted_once():
    result = texts('text(3, per_image=5, which="first")', ["a dog", "cat"])
    np.testing.assert_array_equal(result["tokens"][:, 1], [4, 8, 4, 8, 4])
    np.testing.assert_array_equal(result["text_mask"], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(result["cut"], [1, 0, 0, 0, 0])
    for seed in range(5):
        result = texts("text(3, per_image=5)", ["a", "dog", "cat"], seed)
        assert sorted(result["tokens"][:3, 1]) == [4, 5, 8]  # the real ones come first, each once
        np.testing.assert_array_equal(result["text_mask"], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(texts("text(3, per_image=2)", ["a", "dog", "cat"])["text_mask"], [1, 1])


def test_text_keeps_labels_and_arrays():
    result = texts("text(4)", ["a"], label=np.int32(7), depth=np.ones(3))
    assert result["label"] == 7 and result["depth"].shape == (3,)
    assert "name" not in result and "captions" not in result


def test_text_takes_the_tokenizers_own_specials_and_caption_refuses_them():
    context = {"tokenizer": Foreign(["a", "dog"])}
    transform = parse("text(5)", context)[0]
    result = transform({"image": photo(), "captions": ["a dog"]}, rng())
    np.testing.assert_array_equal(result["tokens"], [[10, 4, 5, 11, 9]])
    with pytest.raises(
        ValueError, match=r"foreign tokenizer has pad, bos and eos \(9, 10, 11\).*text\(\.\.\.\)"
    ):
        parse("caption(5)", context)


# ---------------- questions and answers

ASKED = {
    "image": photo(),
    "question": "Runs a dog left?",
    "answers": ["yes"],
    "question_type": "runs",
    "name": "x",
}


def test_question_and_answers():
    example = apply("question(8) | answers", ASKED)
    assert example.keys() == {"image", "question", "answer"}
    a, dog, runs, left = WORDS.encode("a dog runs left")
    ids = [text.BOS, runs, a, dog, left, text.EOS, text.PAD, text.PAD]
    assert example["question"].tolist() == ids and example["question"].dtype == np.int32
    assert example["answer"].tolist() == [1, 0, 0, 0] and example["answer"].dtype == np.float32
    assert apply("question(4) | answers", ASKED)["question"].tolist() == [text.BOS, runs, a, text.EOS]


@pytest.mark.parametrize(
    ("answers", "target"),
    [
        (["Two"], [0, 0, 1, 0]),
        (["the dog."], [0, 0, 0, 1]),
        (["cat"], [0, 0, 0, 0]),
        ([], [0, 0, 0, 0]),
        (["yes"] * 7 + ["no"] * 2 + ["maybe"], [1, 0.6, 0, 0]),
    ],
)
def test_answers_are_soft_scores(answers, target):
    example = apply("answers", {**ASKED, "answers": answers})
    np.testing.assert_allclose(example["answer"], np.array(target, np.float32), rtol=1e-6)


def test_questions_need_a_question_and_a_vocabulary():
    with pytest.raises(ValueError, match="the example 'x' has no question"):
        apply("question(8)", photo())
    with pytest.raises(ValueError, match=r"needs answers, which .* where the config has data\.answers"):
        parse("question(8) | answers", {"tokenizer": WORDS})


@pytest.mark.parametrize("said", [{"question": "is it left of it?"}, {"answers": ["on the right"]}])
def test_flip_leaves_questions_with_sides_alone(said):
    plain = {**ASKED, "question": "what runs?"}
    np.testing.assert_array_equal(apply("flip(1.0)", plain)["image"], photo()[:, ::-1])
    np.testing.assert_array_equal(apply("flip(1.0)", plain | said)["image"], photo())
    with pytest.raises(ValueError, match="write it before caption, question and answers"):
        apply("question(8) | flip", ASKED)


def test_flip_can_swap_the_sides_that_are_named():
    example = {**ASKED, "image": photo(), "captions": ["Left of it"]}
    example |= {"question": "is the leftmost bright dog RIGHT of it?", "answers": ["left", "no"]}
    kept = dict(example)
    done = image_transforms.flip(1.0, swap=True)(example, np.random.default_rng(0))
    np.testing.assert_array_equal(done["image"], photo()[:, ::-1])
    assert done["question"] == "is the rightmost bright dog left of it?"
    assert (done["answers"], done["captions"]) == (["right", "no"], ["right of it"])
    assert example == kept
    assert image_transforms.flip(0.0, swap=True)(example, np.random.default_rng(0)) == kept


def test_several_questions_of_an_example():
    """Two questions, each with its annotators, are two rows each."""
    several = {**ASKED, "question": ["what runs left?", "a dog?"], "answers": [["two", "left"], ["yes"]]}
    example = apply("flip(1.0, swap=True) | question(6) | answers", several)
    for row, (asked, given) in enumerate((("what runs right?", ["two", "right"]), ("a dog?", ["yes"]))):
        alone = apply("question(6) | answers", {**ASKED, "question": asked, "answers": given})
        assert example["question"][row].tolist() == alone["question"].tolist()
        assert example["answer"][row].tolist() == alone["answer"].tolist()
    assert example["question"].shape == (2, 6) and example["answer"].shape == (2, 4)
    np.testing.assert_array_equal(apply("flip(1.0)", several)["image"], photo())


def test_a_clip_and_its_question_are_mirrored_together():
    (mirror,) = parse("flip(1.0, swap=True)", {})[:-1]
    clip = np.stack([photo(), photo()[::-1]])
    example = {"video": clip, "question": "what direction?", "answers": ["right"]}
    done = mirror(example, np.random.default_rng(0))
    np.testing.assert_array_equal(done["video"], clip[:, :, ::-1])
    assert done["answers"] == ["left"] and done.keys() == example.keys()


# ---------------- whole pipelines

FULL = "decode | random_resized_crop(16, min_area=0.6) | flip | color_jitter(0.2) | caption(max_len=4)"


def test_the_rng_decides_everything():
    example = {"image": encode(Image.fromarray(photo()), "JPEG"), "captions": ["a dog", "a cat", "runs"]}
    kept = dict(example)
    first, again, other = (apply(FULL, example, seed) for seed in (3, 3, 4))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["image"], other["image"])
    assert example == kept
    assert first["image"].shape == (16, 16, 3) and first["image"].dtype == np.uint8


def test_threads_share_a_pipeline():
    pipeline = parse(FULL, CONTEXT)
    example = {"image": encode(Image.fromarray(photo()), "JPEG"), "captions": ["a dog", "a cat"]}
    results = {}

    def work(thread):
        generator, result = rng(9), example
        for transform in pipeline:
            result = transform(result, generator)
        results[thread] = result["image"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(results[0], image) for image in results.values())


def test_parse_reads_several_lines():
    assert len(parse("decode\n  | resize(8)\n  | flip", CONTEXT)) == 4


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("decode | flp", 'Did you mean "flip"'),
        ("decode | random_crop(9)", 'Did you mean "random_resized_crop"'),
        ("decode | caption(max_length=9)", 'Did you mean "max_len"'),
        ("decode | caption", "needs a value for: max_len"),
        ("decode | caption(9, tokenizer=1)", 'Unknown key "tokenizer"'),
        ("decode | resize(8, 9)", "too many arguments; resize takes: size"),
        ("decode | resize(8, size=9)", "gives size twice"),
        ("decode | resize(x)", "must be plain values"),
        ("decode | resize(*[8])", "must be plain values"),
        ("decode | resize(**{})", "too many arguments"),
        ("decode | resize(-1)", "positive whole number"),
        ('decode | resize("8")', "positive whole number"),
        ("decode | flip('x')", "argument of the wrong type"),
        ("decode | flip(2)", "between 0 and 1"),
        ("decode | color_jitter(-1)", "between 0 and 1"),
        ("decode | shift(-1)", "whole number of pixels"),
        ("decode | random_resized_crop(8, min_area=0)", "0 < min_area"),
        ("decode | caption(0)", "at least 1"),
        ("decode | text(1)", "max_len of at least 2"),
        ("decode | question(1)", "max_len of at least 2"),
        ("decode | text(9, 0)", "per_image of at least 1"),
        ('decode | text(9, which="frist")', 'Did you mean "first"'),
        ('decode | text(9, too_long="cutt")', 'Did you mean "cut"'),
        ('decode | caption(5, which="firts")', 'Did you mean "first"'),
        ("decode | os.remove('x')", "is no transform"),
        ("decode + flip", "is no transform"),
        ("decode | | flip", "cannot be read"),
        ("decode | resize(8", "cannot be read"),
        ("", "is no transform"),
    ],
)
def test_parse_errors(pipeline, message):
    with pytest.raises(ValueError, match=message):
        parse(pipeline, CONTEXT)


def test_names():
    pipeline = "decode | resize((8, 9)) | text(max_len=4, which='first')"
    assert transforms.names(pipeline) == ["decode", "resize", "text"]
    assert transforms.names("caption(max_len=len('decode'))") == ["caption"]


def test_parse_says_when_the_program_lacks_a_tokenizer():
    with pytest.raises(ValueError, match="needs tokenizer, which this program does not provide"):
        parse("decode | caption(5)", {})


def test_forgetting_decode_is_an_error():
    for pipeline in ("resize(8)", "caption(4)", "text(4)"):
        with pytest.raises(ValueError, match="begin the pipeline with decode"):
            apply(pipeline, encode(Image.fromarray(photo())))


def test_description():
    """One caption as a text beside the image and the label; which one, and where it is cut, as with `text`."""
    example = {"image": photo(), "captions": ["a dog runs left", "a cat"], "label": np.int32(3)}
    for seed in range(8):
        made, chosen = apply("description(6)", example, seed), apply("text(6)", example, seed)
        np.testing.assert_array_equal(made["text"], chosen["tokens"][0])
    assert made["text"].dtype == np.int32 and made["label"] == 3
    cut = apply("description(4, which='first')", example)["text"]
    np.testing.assert_array_equal(cut, [WORDS.bos, *WORDS.encode("a dog"), WORDS.eos])
    with pytest.raises(ValueError, match=r"description needs max_len of at least 2"):
        parse("description(1)", CONTEXT)
    with pytest.raises(ValueError, match=r"description: the example '' has no captions"):
        apply("description(6)", {"image": photo(), "captions": []})


def test_written_answer():
    """One annotator's answer, as often as it was given, or that of most; framed and cut as a caption is."""
    tokenizer = text.train({"name": "words", "min_count": 1}, ["red", "dark red", "blue"])
    example = {"image": np.zeros((2, 2, 3), np.uint8), "question": np.zeros(3, np.int32), "name": "x"}
    example["answers"] = ["red"] * 6 + ["Dark red"] * 3 + ["blue"]
    frame = lambda *words: [text.BOS, *tokenizer.encode(" ".join(words)), text.EOS]
    draw, rng = text_transforms.written_answer(3, tokenizer=tokenizer), np.random.default_rng(0)
    rows = [draw(example, rng)["tokens"] for _ in range(1000)]
    assert {row.shape for row in rows} == {(1, 4)} and rows[0].dtype == np.int32
    drawn = [tuple(row[0]) for row in rows]
    share = [
        drawn.count((*frame(*words), *[text.PAD] * (2 - len(words)))) / 1000
        for words in (["red"], ["dark", "red"], ["blue"])
    ]
    np.testing.assert_allclose(share, [0.6, 0.3, 0.1], atol=0.05)
    most = transforms.parse("written_answer(2, which='most')", {"tokenizer": tokenizer})
    made = most[1](most[0](example, rng), rng)
    assert made["tokens"].tolist() == [frame("red")] and made.keys() == {"image", "question", "tokens"}
    cut = text_transforms.written_answer(2, "most", tokenizer=tokenizer)
    assert cut({**example, "answers": ["dark red blue"]}, rng)["tokens"].tolist() == [
        frame("dark", "red")[:-1]
    ]
    with pytest.raises(ValueError, match=r"written_answer: the example 'x' has no answers"):
        draw({**example, "answers": []}, rng)
    with pytest.raises(ValueError, match=r'written_answer: unknown which="first"'):
        text_transforms.written_answer(2, "first", tokenizer=tokenizer)
