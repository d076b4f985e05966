"""Every kind of picture file becomes RGB pixels, and pixels what a network sees; broken files say so."""

import numpy as np
import pytest
import torch
from PIL import Image

from affect.expressions.image_files import ImageError, read_image, to_input
from affect.expressions.samples import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD, InputSpec

COLOUR = InputSpec(32, False, IMAGENET_MEAN, IMAGENET_STD)
GRAY = InputSpec(32, True, GRAY_MEAN, GRAY_STD)
ODD = {
    "BWPictureHuman.jpg": (1912, 2560),
    "Image_with_alpha.png": (1036, 1524),
    "free-mountain-vector-01.jpg": (1080, 1920),
    "multi_face.jpg": (667, 1000),
    "single_face.jpg": (562, 572),
}


def ramp(height=12, width=20):
    """Return gray values that differ everywhere."""
    return (np.arange(height * width) % 256).astype(np.uint8).reshape(height, width)


@pytest.mark.parametrize("name", ODD)
def test_real_odd_pictures_become_rgb(shared, name):
    picture = read_image(shared / "data/images/pyfeat" / name)
    assert picture.dtype == np.uint8 and picture.shape == (*ODD[name], 3) and picture.std() > 10


def test_gray_picture_has_three_equal_channels(shared):
    picture = read_image(shared / "data/images/pyfeat/BWPictureHuman.jpg")
    assert np.array_equal(picture[..., 0], picture[..., 1]) and np.array_equal(picture[..., 0], picture[..., 2])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "1"])
def test_every_mode_keeps_black_and_white(tmp_path, mode):
    halves = np.zeros((8, 8), np.uint8)
    halves[:, 4:] = 255
    if mode == "I;16":
        image = Image.fromarray(halves.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(halves).convert("RGB").convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    assert Image.open(path).mode == mode
    picture = read_image(path)
    assert picture.shape == (8, 8, 3) and picture[:, :4].max() == 0 and picture[:, 4:].min() == 255


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    picture = read_image(tmp_path / "deep.png")[..., 0]
    assert picture.flat[0] == 0 and picture.flat[-1] == 255
    assert abs(int(picture.flat[32]) - round(255 * 32 / 63)) <= 1


def test_floats_from_zero_to_one_are_scaled(tmp_path):
    Image.fromarray(np.float32([[0, 0.5, 1]])).save(tmp_path / "float.tif")
    assert read_image(tmp_path / "float.tif")[0, :, 0].tolist() == [0, 128, 255]


def test_transparent_pixels_lie_over_gray(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, 2:] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    assert (picture[:, :2] == 128).all() and (picture[:, 2:] == (255, 0, 0)).all()


def test_palette_transparency_lies_over_gray(tmp_path):
    image = Image.fromarray(np.repeat([[0, 1]], 2, axis=0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png")[0].tolist() == [[128, 128, 128], [10, 200, 30]]


def test_exif_orientation_turns_the_picture(tmp_path):
    image = Image.fromarray(ramp())
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees with the clock
    image.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png")[..., 0], np.rot90(ramp(), -1))


def test_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.fromarray(np.full((6, 6), value, np.uint8)) for value in (40, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert abs(int(read_image(tmp_path / "x.gif").mean()) - 40) <= 1


def test_cut_off_file_says_so(shared, tmp_path):
    whole = (shared / "data/images/pyfeat/single_face.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"cut\.jpg: expected a picture, but it cannot be read .*copy it again"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        b"\x89PNG\r\n\x1a\n\0\0\0\5IHDR" + b"\0" * 40,  # here Pillow raises a ValueError
        b"P6 4x 4 255 ",
    ],
)
def test_other_content_is_an_image_error(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.jpg: "):
        read_image(tmp_path / "x.jpg")


def test_missing_file_and_folder_are_image_errors(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "x.jpg")
    with pytest.raises(ImageError):
        read_image(tmp_path)


@pytest.mark.parametrize("side", [7_072, 20_000])
def test_huge_picture_is_refused_before_it_is_unpacked(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    with pytest.raises(ImageError, match=r"at most 50 million pixels, .* AFFECT_LIMITS=picture_megapixels=\d+$"):
        read_image(tmp_path / "huge.png")


def test_input_is_normalised_by_mean_and_deviation():
    picture = np.full((50, 70, 3), 51, np.uint8)
    for spec in (COLOUR, GRAY):
        seen = to_input(picture, spec)
        assert seen.dtype == torch.float32 and seen.shape == (spec.channels, 32, 32)
        expected = (0.2 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
        assert torch.allclose(seen.amax((1, 2)), expected) and torch.allclose(seen.amin((1, 2)), expected)


def test_gray_input_of_a_gray_picture_keeps_every_value():
    spec = InputSpec(16, True, (0.0,), (1.0,))
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    seen = to_input(np.repeat(values[..., None], 3, axis=2), spec)[0]
    assert torch.equal((seen * 255).round().to(torch.uint8), torch.from_numpy(values))


def test_gray_weighs_green_most():
    spec = InputSpec(4, True, (0.0,), (1.0,))
    colours = (np.full((4, 4, 3), colour, np.uint8) for colour in np.eye(3, dtype=int) * 255)
    red, green, blue = (float(to_input(colour, spec).mean()) for colour in colours)
    assert (round(red, 2), round(green, 2), round(blue, 2)) == (0.30, 0.59, 0.11)


def test_shrinking_takes_means_and_not_single_pixels():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::8] = 255  # none of them is near the middle of the eight pixels that become one
    seen = to_input(stripes, InputSpec(32, True, (0.0,), (1.0,)))
    assert abs(float(seen.mean()) - 1 / 8) < 0.01
