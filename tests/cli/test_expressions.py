"""The image track through inference.py: pictures of every kind, videos and cameras."""

import csv
import json
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from affect.cli import answer as inference
from affect.expressions.config import ImageModelConfig, input_spec
from affect.expressions.drawing import enlarge, write_video
from affect.expressions.models import build_model
from affect.expressions.network_file import ModelCard, save_model

CONFIG = Path(__file__).resolve().parents[2] / "eval_configs" / "fer.yaml"
CLASSES = ("angry", "happy", "sad")


@pytest.fixture
def ckpt(tmp_path):
    """A small network that is sure of what it says, though untrained."""
    torch.manual_seed(1)
    config = ImageModelConfig(arch="compact", width=0.25)
    model = build_model(config, len(CLASSES))
    torch.nn.init.normal_(model.head.weight, std=8)
    path = tmp_path / "run" / "best.safetensors"
    save_model(path, model.state_dict(), ModelCard(config, CLASSES, input_spec(config, None, None)))
    return path


@pytest.fixture
def run(ckpt, tmp_path, capsys):
    """Return a function that runs the script; it gives code, records, output folder and what was printed."""

    def run(*arguments, options=()):
        folder = tmp_path / "out"
        options = [f"output_dir={folder}", "device=cpu", "face_finder=opencv", *options]
        code = inference.main(
            ["--cfg-path", str(CONFIG), "--ckpt", str(ckpt), *map(str, arguments), "--options", *options]
        )
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return code, [json.loads(line) for line in lines], folder, capsys.readouterr().out

    return run


def noise(height=60, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def in_one_line(text):
    return " ".join(text.split())


# -- pictures of faces ---------------------------------------------------------------------------


def test_every_face_of_a_real_picture_is_named(run, shared):
    folder = shared / "data/images/pyfeat"
    code, (record,), out, printed = run("--images", folder / "multi_face.jpg")
    assert code == 0 and record["size"] == [1000, 667] and len(record["faces"]) >= 4
    for face in record["faces"]:
        left, top, right, bottom = face["box"]
        assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 667
        assert face["label"] in CLASSES and sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert face["probability"] == max(face["probabilities"].values())
    drawn, plain = (
        np.asarray(Image.open(path).convert("RGB"), int)
        for path in (out / record["picture"], folder / "multi_face.jpg")
    )
    assert drawn.shape == plain.shape and (np.abs(drawn - plain).max(axis=2) > 60).sum() > 500
    assert f"{len(record['faces'])} faces in 1 pictures" in printed and "expression" in printed


def test_no_face_is_a_result_and_no_failure(run, shared):
    code, (record,), out, printed = run("--images", shared / "data/images/pyfeat/free-mountain-vector-01.jpg")
    assert code == 0 and record["faces"] == [] and not (out / "failures.csv").exists()
    assert "no face was found in 1 of 1 pictures" in printed and (out / record["picture"]).is_file()


def test_gray_and_transparent_real_pictures_beside_one_of_a_face(run, shared):
    names = ["BWPictureHuman.jpg", "Image_with_alpha.png", "single_face.jpg"]
    code, records, out, _ = run("--images", *(shared / "data/images/pyfeat" / name for name in names))
    assert code == 0 and [record["size"] for record in records] == [[2560, 1912], [1524, 1036], [572, 562]]
    assert len(records[2]["faces"]) == 1 and all((out / record["picture"]).is_file() for record in records)


def test_a_face_that_stands_askew_is_turned_where_the_network_was_trained_on_such(run, shared):
    single = shared / "data/images/pyfeat/single_face.jpg"
    _, (plain,), _, _ = run("--images", single, options=["align=False"])
    _, (aligned,), _, _ = run("--images", single, options=["align=True"])
    assert plain["faces"][0]["box"] == aligned["faces"][0]["box"]
    assert plain["faces"][0]["probabilities"] != aligned["faces"][0]["probabilities"]


# -- files of every kind -------------------------------------------------------------------------

WHOLE = ["faces=whole"]


def test_gray_palette_transparent_16_bit_and_turned_pictures_are_read(run, tmp_path):
    picture = Image.fromarray(noise())
    picture.convert("L").save(tmp_path / "gray.png")
    picture.convert("P").save(tmp_path / "palette.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(noise()[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    turned = picture.getexif()
    turned[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=turned)
    names = ["gray.png", "palette.png", "alpha.png", "deep.png", "turned.jpg"]
    code, records, out, _ = run("--images", *(tmp_path / name for name in names), options=WHOLE)
    assert code == 0 and [Path(record["name"]).name for record in records] == names
    assert [record["size"] for record in records] == [[50, 60]] * 4 + [[60, 50]]
    assert all(len(record["faces"]) == 1 and (out / record["picture"]).is_file() for record in records)
    gray, deep = records[0]["faces"][0], records[3]["faces"][0]
    assert gray["box"] == [0, 0, 50, 60] and deep["probability"] > 0


def test_what_cannot_be_read_is_listed_and_the_rest_is_named(run, tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(noise()).save(good)
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "empty").mkdir()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    bad = [tmp_path / name for name in ("text.jpg", "half.png", "empty", "huge.png", "missing.jpg")]
    code, (record,), out, printed = run("--images", *bad, good, options=WHOLE)
    assert code == 1 and record["name"] == str(good)
    rows = list(csv.DictReader((out / "failures.csv").open(encoding="utf-8")))
    assert sorted(row["name"] for row in rows) == sorted(map(str, bad))
    assert "5 could not be read" in printed and all("\n" not in row["reason"] for row in rows)
    assert run("--images", good, options=WHOLE)[0] == 0 and not (out / "failures.csv").exists()


def test_a_name_that_is_no_text_is_escaped(run, tmp_path):
    for name in (b"good\xff.png", b"bad\xfe.png"):
        Image.fromarray(noise()).save(tmp_path / os.fsdecode(name))
    (tmp_path / os.fsdecode(b"bad\xfe.png")).write_bytes(b"")
    code, (record,), out, _ = run("--images", tmp_path, options=WHOLE)
    assert code == 1 and os.fsencode(record["name"]).endswith(b"good\xff.png")
    assert r"bad\udcfe.png" in (out / "failures.csv").read_text(encoding="utf-8")


def test_a_picture_that_is_too_long_for_jpeg_is_marked_as_png(run, tmp_path):
    Image.new("L", (66_000, 3)).save(tmp_path / "strip.png")
    code, (record,), out, _ = run("--images", tmp_path / "strip.png", options=WHOLE)
    assert code == 0 and record["picture"] == "pictures/strip.png"
    assert Image.open(out / record["picture"]).size == (66_000, 3)


def test_a_folder_gives_its_pictures_and_equal_names_keep_apart(run, tmp_path):
    for place, shade in (("one", 10), ("two", 240), ("two/deeper", 128)):
        (tmp_path / place).mkdir()
        Image.new("RGB", (210, 210), (shade,) * 3).save(tmp_path / place / "ä 脸.jpg")
    (tmp_path / "two" / "notes.txt").write_text("no picture")
    (tmp_path / "two" / "._ä.jpg").write_text("what a Mac leaves behind")
    one = tmp_path / "one" / "ä 脸.jpg"
    code, records, out, _ = run("--images", one, tmp_path / "two", one, options=WHOLE)
    assert code == 0 and [Path(record["name"]).parent.name for record in records] == ["one", "deeper", "two"]
    pictures = [record["picture"] for record in records]
    assert pictures == ["pictures/ä 脸.jpg", "pictures/ä 脸-2.jpg", "pictures/ä 脸-3.jpg"]
    shades = [int(np.median(np.asarray(Image.open(out / picture)))) for picture in pictures]
    assert shades == pytest.approx([10, 128, 240], abs=3)


def test_pictures_that_a_run_made_are_not_written_over(run, tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    _, _, out, _ = run("--images", tmp_path / "a.png", options=WHOLE)
    for arguments in (["--images", out], ["--video", out / "pictures" / "a.jpg"]):
        with pytest.raises(ValueError, match=r"a\.jpg is where a run's own pictures go"):
            run(*arguments, options=WHOLE)


def test_faces_of_many_pictures_share_batches_and_keep_their_pictures(run, tmp_path):
    for i in range(7):
        Image.fromarray(noise(seed=i)).save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(7)]
    _, together, _, _ = run("--images", *files, options=[*WHOLE, "batch_size=3"])
    for file, record in zip(files, together, strict=True):
        (alone,) = run("--images", file, options=WHOLE)[1]
        assert alone["faces"][0]["probabilities"] == pytest.approx(record["faces"][0]["probabilities"], abs=1e-5)


def test_each_explained_face_is_a_picture_of_its_own(run, tmp_path):
    Image.fromarray(noise(300, 260)).save(tmp_path / "a.png")
    code, _, out, _ = run("--images", tmp_path / "a.png", "--explain", options=WHOLE)
    assert code == 0
    (path,) = (out / "explained").iterdir()
    assert path.name == "a-face1.jpg" and Image.open(path).size == (520, 300)


def test_near_uniform_probabilities_are_told_in_one_line(run, tmp_path, ckpt):
    config = ImageModelConfig(arch="compact", width=0.25)
    weights = build_model(config, 3).state_dict()
    weights["head.weight"].zero_()
    weights["head.bias"].zero_()
    save_model(ckpt, weights, ModelCard(config, CLASSES, input_spec(config, None, None)))
    Image.fromarray(noise()).save(tmp_path / "a.png")
    code, (record,), _, printed = run("--images", tmp_path / "a.png", options=WHOLE)
    assert code == 0 and record["faces"][0]["near_uniform"] is True
    assert "1 of 1 faces have about the same probability (1/3)" in in_one_line(printed)
    assert "best.safetensors may be untrained or broken" in in_one_line(printed)


# -- videos and cameras --------------------------------------------------------------------------


def frames_of(path):
    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def save_video(path, shades, rate=10):
    with write_video(path) as write:
        for i, shade in enumerate(shades):
            write(i / rate, np.full((120, 161, 3), shade, np.uint8))
    return path


def test_a_video_is_looked_at_so_often_a_second_and_every_frame_is_written(run, tmp_path):
    path = save_video(tmp_path / "clip ü.mp4", range(0, 250, 10))
    code, records, out, printed = run("--video", path, options=[*WHOLE, "predict.frame_rate=2"])
    assert code == 0 and [record["time"] for record in records] == [0, 0.5, 1, 1.5, 2]
    assert [record["frame"] for record in records] == [0, 5, 10, 15, 20]
    written = frames_of(out / "pictures" / "clip ü.mp4")
    assert len(written) == 25 and written[-1][0] == pytest.approx(2.4)
    # the mark of frame 0 is held until frame 5 is looked at
    assert (
        np.abs(written[0][1][:20].astype(int) - 0).max() > 60 and np.abs(written[3][1][:20].astype(int) - 30).max() > 60
    )
    assert "share" in printed


def test_faces_of_a_real_video_are_found_and_boxes_are_held(run, shared):
    path = shared / "data/video/pyfeat_single_face.mp4"
    code, records, out, _ = run("--video", path, "--explain", options=["frame_rate=1"])
    assert code == 0 and records and sum(bool(record["faces"]) for record in records) >= len(records) / 2
    assert (out / "pictures" / "pyfeat_single_face.mp4").is_file() and list((out / "explained").iterdir())


def test_a_video_that_is_none_or_missing_is_one_sentence(run, tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    for name, reason in (("a.mp4", "not a readable media file"), ("b.mp4", "no such file")):
        with pytest.raises(ValueError, match=reason):
            run("--video", tmp_path / name, options=WHOLE)
    assert not list((tmp_path / "out").rglob("*.mp4")) and not (tmp_path / "out" / "predictions.jsonl").exists()


def test_a_video_without_a_frame_leaves_the_answers_of_a_run_before(run, tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    _, _, out, _ = run("--images", tmp_path / "a.png", options=WHOLE)
    before = (out / "predictions.jsonl").read_bytes()
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="no frame can be decoded"):
        run("--video", tmp_path / "text.jpg", options=WHOLE)
    assert (out / "predictions.jsonl").read_bytes() == before


class Camera:
    """Gives five blue frames, then Ctrl+C or nothing more."""

    def __init__(self, end=None, there=True):
        self.count, self.end, self.there, self.released = 0, end, there, False

    def isOpened(self):
        return self.there

    def read(self):
        self.count += 1
        if self.count > 5:
            if self.end:
                raise self.end
            return False, None
        frame = np.zeros((100, 120, 3), np.uint8)
        frame[..., 0] = 200  # blue comes first in OpenCV
        return True, frame

    def release(self):
        self.released = True


@pytest.mark.parametrize(("end", "most", "expected"), [(KeyboardInterrupt, None, 5), (None, None, 5), (None, 3, 3)])
def test_what_a_camera_sees_is_written_until_it_is_stopped(run, monkeypatch, end, most, expected):
    camera = Camera(end)
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    limit = ["--max_frames", most] if most else []
    code, records, out, _ = run("--webcam", 0, *limit, options=[*WHOLE, "frame_rate=1000"])
    written = frames_of(out / "pictures" / "webcam0.mp4")
    assert code == 0 and camera.released and len(written) == expected and len(records) >= 1
    red, _, blue = written[0][1][60, 60]
    assert blue > 150 > red


def test_a_camera_that_is_not_there_is_one_sentence(run, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: Camera(there=False))
    with pytest.raises(ValueError, match="camera 7 cannot be opened"):
        run("--webcam", 7, options=WHOLE)


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--images", "a.jpg", "--video", "b.mp4"],
        ["--images", "a.jpg", "--max_frames", "3"],
        ["--webcam", "0", "--max_frames", "0"],
        ["--images", "a.jpg", "--dataset", "mer2023"],
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        inference.main(["--cfg-path", str(CONFIG), *arguments])
    assert stop.value.code == 2


def test_a_checkpoint_must_be_named_and_whole(tmp_path, ckpt):
    with pytest.raises(ValueError, match=r"predict\.ckpt: expected"):
        inference.main(["--cfg-path", str(CONFIG), "--images", "a.jpg"])
    ckpt.write_bytes(ckpt.read_bytes()[:3000])
    with pytest.raises(ValueError, match="cut off"):
        inference.main(["--cfg-path", str(CONFIG), "--images", "a.jpg", "--ckpt", str(ckpt)])


@pytest.mark.parametrize("name", ["run #2: b", "123", "null"])
def test_a_checkpoint_may_have_any_name(run, tmp_path, ckpt, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    ckpt.parent.rename(tmp_path / name)
    Image.fromarray(noise()).save(tmp_path / "a.png")
    assert run("--images", tmp_path / "a.png", "--ckpt", name, options=WHOLE)[0] == 0


def test_a_whole_picture_cannot_be_turned_by_a_face_that_is_not_looked_for(run, tmp_path):
    with pytest.raises(ValueError, match=r"predict\.align turns faces that are found"):
        run("--images", tmp_path / "a.png", options=[*WHOLE, "align=True"])


# -- drawing -------------------------------------------------------------------------------------


def test_small_pictures_are_enlarged_and_large_ones_are_not():
    assert enlarge(noise(48, 60))[0].shape == (240, 300, 3)
    large = noise(300, 250)
    assert enlarge(large)[0] is large
    assert enlarge(noise(5, 3000))[0].shape == (5, 3000, 3)


def test_a_video_that_failed_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), write_video(tmp_path / "a.mp4") as write:
        write(0, noise())
        raise RuntimeError
    assert not list(tmp_path.iterdir())
