"""Encoded pictures: bytes by their content, whatever their name says -> 8-bit RGB."""

import io

import numpy as np

from mmgen_jax.data.quarantine import BrokenExample

# First bytes of the usual formats, to tell a picture cut in its header from something else altogether.
SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def decode(data: bytes, max_pixels: int):
    """Encoded bytes -> PIL image in mode RGB.

    Raises:
      BrokenExample: they are no whole image, or declare more than `max_pixels`.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BrokenExample("zero bytes")
    try:
        image = Image.open(io.BytesIO(data))
        # The header has been read, the pixels have not.
        if image.width * image.height > max_pixels:
            raise BrokenExample(
                f"decompression bomb: {image.width} x {image.height} pixels declared, at most {max_pixels}"
            )
        if image.format == "PNG":
            # Decoding passes over the checksums, and a flipped bit would be another picture.
            image.verify()
            image = Image.open(io.BytesIO(data))
        image.load()
        return to_rgb(image)
    except BrokenExample:
        raise
    except UnidentifiedImageError:
        kind = "truncated: cut in its header" if data.startswith(SIGNATURES) else "not an image"
        start = ascii(data[:8].decode("latin-1"))
        raise BrokenExample(f"{kind}: {len(data)} bytes that begin with {start}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenExample(f"decompression bomb: {error}") from None
    except Exception as error:  # PIL's plugins raise all sorts of things on damaged files.
        raise BrokenExample(f"truncated or damaged: {error}") from error


def to_rgb(image):
    """A PIL image of any mode -> RGB, upright."""
    from PIL import Image, ImageOps

    try:
        upright = image.getexif().get(0x0112, 1) == 1  # the tag Orientation
    except Exception:  # A damaged tag block says nothing about the pixels.
        upright = True
    if not upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # convert() would clip at 255.
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BrokenExample(
            f"no known range: mode {image.mode} has 32 bits a pixel; save it with 8 or 16 bits"
        )
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
