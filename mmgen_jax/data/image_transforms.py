"""Transforms of pictures and videos: reading them, cutting, turning, colouring, and the array at the end."""

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.data import pictures, video
from mmgen_jax.data.example import Example, Transform, check_word
from mmgen_jax.data.quarantine import BrokenExample, read_bytes

_LUMA = np.array([0.299, 0.587, 0.114])
_SPEAKING = ("captions", "question", "answers")
_SIDES = re.compile(r"\b(?:left|right)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def decode(max_pixels: int = 2**26) -> Transform:
    """Read the encoded image (bytes or a path) by its content, whatever its name says, as 8-bit RGB.

    Grey, palette, CMYK and 16-bit images are converted; transparent parts are laid on white; the EXIF
    orientation is applied; of an animation the first frame is taken. An image that is an array already
    (uint8, [H, W, 3] or grey [H, W]) passes. The result is a PIL image, which the following transforms share
    without copies; the end of a pipeline makes it an array.

    Args:
      max_pixels: an image that declares more pixels is refused before it is decoded (a decompression bomb).
        PIL's own bound of 179 million holds in any case.

    Raises:
      BrokenExample: by the transform, when the image is missing, empty, truncated, no image, or too large.
    """
    from PIL import Image

    # Too many pixels are refused here, with a reason; PIL's warning about the same would only be noise.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

    def transform(example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        if isinstance(image, np.ndarray):
            return {**example, "image": _check_array(image)}
        data = read_bytes(image) if isinstance(image, (str, Path)) else image
        return {**example, "image": pictures.decode(data, max_pixels)}

    return transform


def resize(size: int | tuple[int, int]) -> Transform:
    """Resize so that the shorter side is `size` pixels long, or to exactly (height, width)."""
    height, width = _pair(size)

    def transform(example: Example, rng: np.random.Generator) -> Example:
        image = _pil(example["image"])
        if isinstance(size, int):
            scale = size / min(image.size)
            target = tuple(max(size, round(side * scale)) for side in image.size)
        else:
            target = (width, height)
        return {**example, "image": _resample(image, target, None)}

    return transform


def center_crop(size: int | tuple[int, int]) -> Transform:
    """Cut out the middle, `size` x `size` or (height, width) pixels; a smaller image is enlarged first."""
    height, width = _pair(size)

    def transform(example: Example, rng: np.random.Generator) -> Example:
        image = _pil(example["image"])
        scale = max(1.0, width / image.width, height / image.height)
        cut_width, cut_height = min(width / scale, image.width), min(height / scale, image.height)
        # Whole pixels, so that cutting alone never interpolates.
        left, top = (image.width - cut_width) // 2, (image.height - cut_height) // 2
        box = (left, top, left + cut_width, top + cut_height)
        return {**example, "image": _resample(image, (width, height), box)}

    return transform


def random_resized_crop(
    size: int | tuple[int, int], min_area: float = 0.25, ratio: float = 4 / 3
) -> Transform:
    """Cut out a random part and resize it (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Args:
      size: side length of the result, or (height, width).
      min_area: smallest area of the part, as a share of the image's.
      ratio: the part's width / height lies between 1 / ratio and ratio, evenly in the logarithm.
    """
    height, width = _pair(size)
    if not 0 < min_area <= 1 or ratio < 1:
        raise ValueError(
            f"random_resized_crop needs 0 < min_area <= 1 and ratio >= 1, not {min_area} and {ratio}."
        )
    log_ratio = math.log(ratio)

    def transform(example: Example, rng: np.random.Generator) -> Example:
        image = _pil(example["image"])
        area, skew, x, y = rng.random(4)
        area = (min_area + (1 - min_area) * area) * image.width * image.height
        aspect = math.exp(log_ratio * (2 * skew - 1))
        cut_width, cut_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        # A part that does not fit shrinks and keeps its shape. The bounds below only catch rounding.
        shrink = min(1.0, image.width / cut_width, image.height / cut_height)
        cut_width, cut_height = min(cut_width * shrink, image.width), min(cut_height * shrink, image.height)
        left, top = x * (image.width - cut_width), y * (image.height - cut_height)
        box = (left, top, min(left + cut_width, image.width), min(top + cut_height, image.height))
        return {**example, "image": _resample(image, (width, height), box)}

    return transform


def shift(pixels: int) -> Transform:
    """Move the image by up to `pixels` each way, its edges repeated (He et al. 2015, arXiv:1512.03385, section 4.2; zeros there).

    For things that are always at the same places in training and elsewhere later.
    """
    if not isinstance(pixels, int) or pixels < 0:
        raise ValueError(f"shift needs a whole number of pixels, 0 or more, not {pixels!r}.")

    def transform(example: Example, rng: np.random.Generator) -> Example:
        image = np.asarray(_pil(example["image"]))
        top, left = rng.integers(0, 2 * pixels + 1, size=2)
        padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
        return {**example, "image": padded[top : top + len(image), left : left + image.shape[1]]}

    return transform


def flip(probability: float = 0.5, swap: bool = False) -> Transform:
    """Mirror the image left to right, unless a caption, the question or an answer speaks of left or right.

    Args:
      probability: of mirroring.
      swap: mirror those too, and exchange the words "left" and "right" in what is said (then in lower case), also at the
        beginning of a word, as in "leftmost". For data where they mean nothing but sides.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"flip needs a probability between 0 and 1, not {probability}.")

    def transform(example: Example, rng: np.random.Generator) -> Example:
        said = [text for key in _SPEAKING for text in _texts(example.get(key, ()))]
        if not all(isinstance(text, str) for text in said) or not {"captions", "question"} & example.keys():
            raise ValueError(
                "flip reads captions and questions: write it before caption, question and answers."
            )
        # The number is drawn in either case, so that a caption never changes the augmentations that follow.
        chosen = rng.random() < probability
        if not chosen or (not swap and any(map(_SIDES.search, said))):
            return example
        if swap:
            example = {**example, **_swapped(example)}
        image = example["image"]
        if isinstance(image, np.ndarray):
            return {**example, "image": image[:, ::-1]}
        from PIL import Image

        return {**example, "image": _pil(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)}

    return transform


def color_jitter(strength: float = 0.2) -> Transform:
    """Vary brightness, contrast and saturation by factors between 1 - strength and 1 + strength.

    All three are linear in the colours, so they are applied as one 3 x 4 matrix: saturation first, then
    contrast about the image's mean grey, then brightness.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"color_jitter needs a strength between 0 and 1, not {strength}.")

    def transform(example: Example, rng: np.random.Generator) -> Example:
        image = _pil(example["image"])
        brightness, contrast, saturation = 1 + strength * (2 * rng.random(3) - 1)
        mean = float(_LUMA @ image.reduce(image.size).getpixel((0, 0)))  # averaging all pixels into one
        colours = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * _LUMA[None, :])
        offset = np.full((3, 1), brightness * (1 - contrast) * mean)
        matrix = np.concatenate([colours, offset], axis=1).ravel().tolist()
        return {**example, "image": image.convert("RGB", matrix)}

    return transform


def frames(
    count: int,
    rate: float | None = None,
    jitter: bool = False,
    too_short: str = "refuse",
    max_pixels: int = 2**26,
) -> Transform:
    """Read `count` frames of the video, whatever its form (see `video.open_video`): "video" becomes uint8 [count, H, W, 3].

    "key_frames", numbers of the video's frames, are taken with them. What follows treats all frames alike: one crop for all.

    Args:
      count: F.
      rate: frames a second; by default they are spread evenly over the whole video, one from each of `count` equal parts.
      jitter: for training: a random frame of each part, or a random begin. Else the middle of each, or of the video.
      too_short: a video of fewer frames is a broken example ("refuse"), or gets black frames at its end ("pad"); then there is
        "frame_mask", bool [count], true on frames that are there.
      max_pixels: of a frame, see `decode`.

    Raises:
      BrokenExample: by the transform, when the video is missing, damaged, without frames or, with "refuse", too short.
      ValueError: by the transform, with a rate, when the video does not say its own; a number out of its range.
    """
    check_word("frames", "too_short", too_short, ("refuse", "pad"))
    if count < 1 or (rate is not None and rate <= 0):
        raise ValueError(f"frames needs count of at least 1 and a rate above 0, not {count} and {rate}.")

    def transform(example: Example, rng: np.random.Generator) -> Example:
        if "video" not in example:
            raise ValueError(f"frames: the example {example.get('name', '')!r} has no video.")
        opened = video.open_video(example["video"], max_pixels)
        chosen = video.sample(opened, count, rate, rng if jitter else None)
        if len(chosen) < count and too_short == "refuse":
            every = "" if rate is None else f" at {rate:g} a second"
            raise BrokenExample(
                f"shorter than the sampling: {opened.count} frames, frames(count={count}){every} needs more; take fewer, or "
                'set too_short="pad"'
            )
        result = {**example, "video": _padded(opened.take(chosen), count)}
        if "key_frames" in example:
            result["key_frames"] = _padded(example["key_frames"][chosen], count)
        if too_short == "pad":
            result["frame_mask"] = np.arange(count) < len(chosen)
        return result

    return transform


def array() -> Transform:
    """Make the image uint8 [H, W, 3] and drop what no batch can hold (captions, names). `parse` adds this.

    A video is uint8 [F, H, W, 3]. A float32 image of three dimensions is data already, such as the points of `toys.Gaussians`,
    and stays as it is.
    """

    def transform(example: Example, rng: np.random.Generator) -> Example:
        kept = {key: value for key, value in example.items() if isinstance(value, (np.ndarray, np.generic))}
        if "video" in example:
            if "video" not in kept:
                raise ValueError(
                    "The video is still encoded: begin the pipeline with frames(count=...), which reads some of its frames."
                )
            return {**kept, "video": video.check_array(kept["video"])}
        image = example["image"]
        if isinstance(image, (bytes, str, Path)):
            raise ValueError("The image is still encoded: begin the pipeline with decode.")
        image = np.asarray(image)
        data = image.dtype == np.float32 and image.ndim == 3
        return {**kept, "image": image if data else _check_array(image)}

    return transform


def on_frames(transform: Transform) -> Transform:
    """A transform of pictures that also does the same to every frame of a video."""

    def apply(example: Example, rng: np.random.Generator) -> Example:
        if "video" not in example:
            return transform(example, rng)
        if not isinstance(example["video"], np.ndarray):
            raise ValueError("The video is still encoded: begin the pipeline with frames(count=...).")
        seed = int(rng.integers(2**63))
        done = [
            transform({**example, "image": frame}, np.random.default_rng(seed)) for frame in example["video"]
        ]
        # What is said may have changed too.
        rest = {key: value for key, value in done[0].items() if key != "image"}
        return {**rest, "video": np.stack([np.asarray(one["image"]) for one in done])}

    return apply


def _swapped(example: Example) -> Example:
    """What is said of an example, with the sides exchanged."""

    def other(said: Any) -> Any:
        if isinstance(said, str):
            return _SIDES.sub(lambda match: _OTHER[match[0].lower()], said)
        return [other(part) for part in said]

    return {key: other(example[key]) for key in _SPEAKING if key in example}


def _texts(said: Any) -> Iterator[Any]:
    """The texts of a text, a list, or a list of lists."""
    if not isinstance(said, list | tuple):
        yield said
        return
    for part in said:
        yield from _texts(part)


def _padded(frames: np.ndarray, count: int) -> np.ndarray:
    """Zeros up to `count` entries."""
    return np.concatenate([frames, np.zeros((count - len(frames), *frames.shape[1:]), frames.dtype)])


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """size or (height, width) -> (height, width), checked."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"A size is a positive whole number or (height, width), not {size!r}.")
    return pair


def _check_array(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] as it is; grey [H, W] or [H, W, 1] is repeated."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"An image array must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}.")
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _pil(image: Any):
    """The image as a PIL image."""
    from PIL import Image

    if isinstance(image, (bytes, str, Path)):
        raise ValueError("The image is still encoded: begin the pipeline with decode.")
    return (
        Image.fromarray(np.ascontiguousarray(_check_array(image))) if isinstance(image, np.ndarray) else image
    )


def _resample(image, size: tuple[int, int], box: tuple[float, float, float, float] | None):
    """Cut `box` out of a PIL image and resize it to (width, height), with antialiasing."""
    from PIL import Image

    return image.resize(size, Image.Resampling.BILINEAR, box=box)
