"""Image files as pixels, and pixels as what a network sees: one path for training, evaluation and prediction."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional

from affect.core.failures import Failure
from affect.core.reading import limit, reading, require_within
from affect.expressions.samples import InputSpec

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif"}
_BACKGROUND = 128  # gray under transparent pixels: no edge against most faces
_LUMA = np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601 in units of 2**-16; they sum to one, so gray stays gray


class ImageError(ValueError):
    """A picture that cannot be used, in one sentence."""


def list_images(paths: Iterable[Path]) -> tuple[list[Path], list[Failure]]:
    """Return the images that paths of files and folders (with those below) name, each once, and empty folders.

    Of a folder the files with an ending of an image count; a file that is named is an image by being so.
    """
    files: list[Path] = []
    failures = []
    for path in paths:
        inside = images_below(path) if path.is_dir() else [path]
        if not inside:
            failures.append(Failure(str(path), "read", f"{path}: there is no picture in this folder; name another"))
        files += inside
    return list(dict.fromkeys(files)), failures


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and the folders in it, sorted; links are followed, hidden files are not."""
    found, seen = [], set()
    for place, inner, files in os.walk(folder, followlinks=True):
        identity = (Path(place).stat().st_dev, Path(place).stat().st_ino)
        if identity in seen:  # a link to a folder above
            inner.clear()
            continue
        seen.add(identity)
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [
            Path(place) / name for name in files if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def read_image(path: str | Path) -> np.ndarray:
    """Return a picture as uint8 RGB [H, W, 3], turned as its EXIF tag says.

    Gray, palette, CMYK and 1-bit pictures become RGB, 16-bit ones are scaled, transparent pixels lie over
    mid-gray; of several frames the first counts. Raises ImageError for a file that cannot be read, is cut
    off, or has too many pixels (affect.core.reading).
    """
    with warnings.catch_warnings(), reading(path, "a picture", "it may be cut off, copy it again", ImageError):
        warnings.simplefilter("ignore")  # Pillow warns of sizes that are refused here
        Image.MAX_IMAGE_PIXELS = int(limit("picture_megapixels") * 1e6)  # holds for pictures in pictures (ICO), too
        try:
            with Image.open(path) as image:
                require_within("picture_megapixels", image.width * image.height / 1e6, path)
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError as error:  # above twice the limit; it tells the pixels first
            require_within("picture_megapixels", int(re.findall(r"\d+", str(error))[0]) / 1e6, path)
            raise


def to_input(image: np.ndarray, spec: InputSpec) -> Tensor:
    """Return a picture uint8 RGB [H, W, 3] as the network sees it: float32 [C, S, S], resized and normalised."""
    return normalise(resize(as_tensor(image), spec.size), spec)


def as_tensor(image: np.ndarray) -> Tensor:
    """Return a picture uint8 [H, W, C] as uint8 [C, H, W], sharing its memory."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def resize(image: Tensor, size: int) -> Tensor:
    """Return a picture uint8 [C, H, W] as a square [C, S, S] by bilinear interpolation with antialiasing."""
    return functional.resize(image, [size, size], antialias=True)


def normalise(image: Tensor, spec: InputSpec) -> Tensor:
    """Return a picture uint8 RGB [3, S, S] as float32 [C, S, S] of the network's channels, mean and deviation."""
    if spec.gray:
        weights = torch.from_numpy(_LUMA.astype(np.int32)).view(3, 1, 1)
        image = (image.to(torch.int32) * weights).sum(0, keepdim=True).add_(1 << 15) >> 16
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    # (image / 255 - mean) / std in two passes, along the memory: a third of the time
    return image.contiguous().to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return _many_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_BACKGROUND,) * 3 + (255,)), image)
    return np.array(image.convert("RGB"))


def _many_bits(image: Image.Image) -> np.ndarray:
    """Scale gray values of 16 bits, or floats of 0 to 1, to 8 bits (Pillow's own conversion cuts them off at 255)."""
    values = np.array(image, np.float64)
    highest = values.max(initial=0)
    if highest > 255:
        values /= 257
    elif image.mode == "F" and highest <= 1:
        values *= 255
    np.clip(np.rint(values, out=values), 0, 255, out=values)
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)
