"""Shaping pictures in decode workers: exactly what the models' own preprocessing does, or not at all."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

from extractors.encoders import Encoder, build_encoder
from extractors.encoders.prepare import PictureShape, as_it_is
from extractors.encoders.pretrained import WeightsError
from tiny_encoders import OPEN_CLIP_CONFIG, encode, frames, save, save_open_clip

SIZES = [(1, 1), (3, 500), (500, 3), (17, 31), (64, 70), (70, 64), (288, 360), (301, 200), (1080, 1920)]
SQUARE = {"height": 32, "width": 32}
PROCESSORS = {
    "shorter edge and cut": transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    "odd margins": transformers.BitImageProcessor(size={"shortest_edge": 37}, crop_size=SQUARE, resample=3),
    "smaller than its cut": transformers.CLIPImageProcessor(size={"shortest_edge": 17}, crop_size=SQUARE),
    "cut only": transformers.CLIPImageProcessor(do_resize=False, crop_size=SQUARE),
    "both edges": transformers.SiglipImageProcessor(size={"height": 32, "width": 48}),
    "bilinear, not normalised": transformers.ViTImageProcessor(size=SQUARE, resample=2, do_normalize=False),
    "Lanczos, not rescaled": transformers.ViTImageProcessor(size=SQUARE, resample=1, do_rescale=False),
}
OTHER_PROCESSORS = {"zoom before its cut": transformers.ConvNextImageProcessor(size={"shortest_edge": 32})}
OPEN_CLIP = {
    "shortest": {},
    "squash": {"resize_mode": "squash", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "bilinear": {"interpolation": "bilinear"},
}
OTHER_OPEN_CLIP = {"longest": {"resize_mode": "longest", "fill_color": 9}}


def with_processor(folder: Path, processor) -> Path:
    """A model that takes pictures of any size, with another image processor than its own."""
    place = save("dinov2", folder)
    processor.save_pretrained(place)
    return place


def open_clip_folder(folder: Path, **preprocess) -> Path:
    torch.manual_seed(0)
    save_open_clip(folder, **preprocess)
    return folder


def run_hf(folder: Path, picture: np.ndarray) -> np.ndarray:
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(list(picture), return_tensors="pt", input_data_format="channels_last")
    with torch.inference_mode():
        return transformers.AutoModel.from_pretrained(folder).eval()(**inputs).pooler_output.numpy()


def run_open_clip(folder: Path, picture: np.ndarray) -> np.ndarray:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = torch.stack([transform(Image.fromarray(frame)) for frame in picture])
    with torch.inference_mode():
        return model.eval().encode_image(pixels).numpy()


@pytest.mark.parametrize("kind", PROCESSORS)
def test_workers_shape_pictures_exactly_as_the_image_processor_does(tmp_path, kind):
    folder = with_processor(tmp_path, PROCESSORS[kind])
    encoder = build_encoder("frame", f"hf:{folder}")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert isinstance(encoder.prepare, PictureShape)
    for size in SIZES:
        prepared = encoder.prepare(frames(2, *size))
        own = processor(
            list(frames(2, *size)),
            do_rescale=False,
            do_normalize=False,
            return_tensors="np",
            input_data_format="channels_last",
        )
        assert prepared.dtype == np.uint8
        np.testing.assert_array_equal(prepared, np.moveaxis(own["pixel_values"], 1, -1))
    picture = frames(2, 61, 83)
    np.testing.assert_allclose(encode(encoder, [picture])[0], run_hf(folder, picture), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_workers_shape_pictures_exactly_as_open_clip_does(tmp_path, kind):
    folder = open_clip_folder(tmp_path, **OPEN_CLIP[kind])
    encoder = build_encoder("face", f"open_clip:{folder}")
    shape_only = open_clip.create_model_and_transforms(f"local-dir:{folder}")[2].transforms[:2]
    assert isinstance(encoder.prepare, PictureShape)
    for size in SIZES:
        picture = frames(1, *size)
        own = Image.fromarray(picture[0])
        for step in shape_only:
            own = step(own)
        np.testing.assert_array_equal(encoder.prepare(picture)[0], np.asarray(own))
    picture = frames(2, 61, 83)
    np.testing.assert_allclose(encode(encoder, [picture])[0], run_open_clip(folder, picture), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*OTHER_PROCESSORS, *OTHER_OPEN_CLIP])
def test_what_workers_cannot_do_exactly_is_done_by_the_library(tmp_path, kind):
    if kind in OTHER_PROCESSORS:
        folder, run = with_processor(tmp_path, OTHER_PROCESSORS[kind]), run_hf
        encoder = build_encoder("frame", f"hf:{folder}")
    else:
        folder, run = open_clip_folder(tmp_path, **OTHER_OPEN_CLIP[kind]), run_open_clip
        encoder = build_encoder("frame", f"open_clip:{folder}")
    assert encoder.prepare is as_it_is
    assert "32 x 32 by the model's own preprocessing" in encoder.provenance()["preprocessing"]
    for size in SIZES[3:]:
        picture = frames(2, *size)
        np.testing.assert_allclose(encode(encoder, [picture])[0], run(folder, picture), rtol=1e-4, atol=1e-5)


def test_open_clip_models_of_other_sides_than_squares_are_encoded_as_open_clip_does(tmp_path):
    folder = open_clip_folder(tmp_path)
    tall = {**OPEN_CLIP_CONFIG, "vision_cfg": {**OPEN_CLIP_CONFIG["vision_cfg"], "image_size": [64, 32]}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tall, "preprocess_cfg": {}}))
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(open_clip.model.CLIP(**tall).state_dict(), folder / "open_clip_pytorch_model.bin")
    encoder = build_encoder("frame", f"open_clip:{folder}")
    picture = frames(2, 61, 83)
    np.testing.assert_allclose(encode(encoder, [picture])[0], run_open_clip(folder, picture), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "processor, message",
    [
        (transformers.CLIPImageProcessor(do_center_crop=False), "pictures of one size"),
        (transformers.BitImageProcessor(do_resize=False, do_center_crop=False), "pictures of one size"),
        (transformers.Siglip2ImageProcessor(), "pictures of one size"),
        (transformers.EfficientNetImageProcessor(size=SQUARE), "whole numbers"),
        (
            transformers.EfficientNetImageProcessor(size=SQUARE, rescale_offset=True, include_top=False),
            "does more than",
        ),
    ],
)
def test_preprocessing_that_cannot_be_split_is_refused(tmp_path, processor, message):
    with pytest.raises(WeightsError, match=message) as caught:
        build_encoder("frame", f"hf:{with_processor(tmp_path, processor)}")
    assert "\n" not in str(caught.value)


def test_frames_that_nobody_prepared_are_refused_and_not_taken_for_others(tmp_path):
    encoder = build_encoder("frame", f"hf:{save('dinov2', tmp_path)}")  # a model that would take them
    with pytest.raises(ValueError, match=r"\[40, 48, 3\]: expected \[32, 32, 3\]; pass them through `prepare`"):
        encoder([frames(2, 40, 48)])


def test_no_pictures_are_shaped_to_no_pictures():
    shape = PictureShape(size=40, cut=(32, 32))
    assert shape(frames(0)).shape == shape(np.zeros((0, 0, 0, 3), np.uint8)).shape == (0, 32, 32, 3)
    assert PictureShape(size=(8, 9))(frames(0)).shape == (0, 8, 9, 3)


def test_a_worker_unpickles_and_runs_prepare_without_torch(tmp_path):
    encoder: Encoder = build_encoder("frame", f"hf:{save('clip', tmp_path)}")
    picture = frames(3)
    np.save(tmp_path / "in.npy", picture)
    (tmp_path / "prepare.pickle").write_bytes(pickle.dumps(encoder.prepare))
    code = (
        "import pickle, sys, numpy; from pathlib import Path; folder = Path(sys.argv[1]); "
        "prepare = pickle.loads((folder / 'prepare.pickle').read_bytes()); "
        "numpy.save(folder / 'out.npy', prepare(numpy.load(folder / 'in.npy'))); "
        "sys.exit(bool({'torch', 'transformers', 'open_clip'} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root).returncode == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), encoder.prepare(picture))
