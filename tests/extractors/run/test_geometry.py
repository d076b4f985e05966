"""What encoders see of frames and faces: whole pictures squashed, or what their own preprocessing leaves of them."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from affect.core.schema import Modality
from affect.features.store import FeatureError, FeatureSpec
from extractors.encoders import NAMED
from extractors.encoders.prepare import PictureShape
from extractors.run.clip import encode_clips, prepare_clip
from extractors.run.session import REFERENCE_ENCODERS, Session, Settings

SIDE = 32


class Columns:
    """Cuts pictures as CLIP's own preprocessing does and gives the brightness of each column."""

    dim = SIDE
    prepare = PictureShape(SIDE, (SIDE, SIDE), Image.Resampling.BICUBIC)

    def provenance(self):
        return {"family": "columns"}

    def __call__(self, items):
        return [item.mean(axis=(1, 3), dtype=np.float32) for item in items]


@pytest.fixture
def settings(tmp_path):
    """A clip of 320 x 180 whose left fifth is bright, and face crops of 112 pixels whose left half is."""
    picture, faces = np.zeros((180, 320, 3), np.uint8), np.zeros((9, 112, 112, 3), np.uint8)
    picture[:, :64], faces[:, :, :56] = 255, 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = 320, 180
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    np.save(tmp_path / "a.npy", faces)
    roots = {"video_root": tmp_path, "face_root": tmp_path, "save_root": tmp_path / "features"}
    return Settings(dataset="toy", streams=(Modality.FRAME, Modality.FACE), **roots)


def columns(settings: Settings, stream: Modality = Modality.FRAME) -> np.ndarray:
    """Store the features of the clip and return the brightness of the columns that the encoder saw."""
    session = Session(settings, build=lambda *_: Columns())
    result = prepare_clip(session.task("a", settings.features))
    assert not result.errors
    encode_clips(session, [result])
    for each, rows in result.features.items():
        session.store.write(session.specs[each], "a", rows, session.provenance(each))
    return result.features[stream][0]


def sidecar(settings: Settings, stream: str = "frame"):
    return settings.save_root / "toy" / f"{stream}_CLIP_VIT_LARGE_8frms" / "provenance.json"


def test_the_bright_left_fifth_of_a_frame_is_seen_by_encoders_of_the_reference(settings):
    assert set(NAMED[Modality.FRAME]) == set(REFERENCE_ENCODERS)
    seen = columns(settings)
    assert seen[: SIDE // 5].min() > 240 and seen[SIDE // 5 + 2 :].max() < 10
    assert json.loads(sidecar(settings).read_text())["frame_geometry"] == "squash"
    cut = replace(settings, frame_geometry="crop", save_root=settings.save_root / "crop")
    assert columns(cut).max() < 10
    other = replace(settings, visual_encoder="hf:mine", save_root=settings.save_root / "own")
    assert columns(other).max() < 10  # whose own preprocessing is what it was trained with


def test_face_arrays_are_enlarged_bilinearly_before_the_encoder_prepares_them(settings):
    ramp = columns(settings, Modality.FACE)
    bilinear = Image.fromarray(np.load(settings.face_root / "a.npy")[0]).resize((224, 224), Image.Resampling.BILINEAR)
    assert np.abs(ramp - Columns()([Columns.prepare(np.asarray(bilinear)[None])])[0]).max() < 1
    assert json.loads(sidecar(settings, "face").read_text())["frame_geometry"] == "squash"
    found = Session(replace(settings, face_root=None), build=lambda *_: Columns())
    assert "frame_geometry" not in found.provenance(Modality.FACE)  # cut out in one size


def test_a_folder_from_before_holds_cropped_frames_and_goes_on_with_them(settings):
    columns(replace(settings, frame_geometry="crop"))
    for stream in ("frame", "face"):
        path = sidecar(settings, stream)
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "frame_geometry"}))
    assert columns(settings).max() < 10
    with pytest.raises(FeatureError, match="frame_geometry is 'crop', but this run would write 'squash'; ask for what"):
        columns(replace(settings, frame_geometry="squash"))
    store = Session(settings).store
    spec = FeatureSpec(Modality.FRAME, "CLIP_VIT_LARGE", SIDE)
    assert len(store.read(spec, "a")) == len(store.read(replace(spec, geometry="crop"), "a")) == 8
    with pytest.raises(FeatureError, match="frame_geometry is 'crop', but the run expects 'squash'; change the config"):
        Session(settings).store.read(replace(spec, geometry="squash"), "a")
