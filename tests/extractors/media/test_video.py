"""Reading exactly the frames of a video that are asked for."""

import subprocess
import sys
from pathlib import Path

import av
import cv2
import decord
import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from extractors.media.decode import MediaError, read_video

WIDTH, HEIGHT = 96, 64
RED, BLUE = [255, 0, 0], [0, 0, 255]


def numbered_picture(number: int) -> np.ndarray:
    """A picture that tells its number in black and white columns, red above and blue below."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        picture[:, bit * WIDTH // 8 : (bit + 1) * WIDTH // 8] = 220 if number >> bit & 1 else 30
    picture[:8], picture[-8:] = RED, BLUE
    return picture


def number_of(picture: np.ndarray) -> int:
    row = picture[HEIGHT // 2 - 4 : HEIGHT // 2 + 4].mean(axis=(0, 2))
    return sum(1 << bit for bit in range(8) if row[bit * WIDTH // 8 + WIDTH // 16] > 125)


def write_video(path: Path, codec: str = "libx264", frames: int = 60, rotation: int = 0, **context) -> Path:
    """Write numbered pictures; `context` is set on the codec (gop_size, max_b_frames, pix_fmt …)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = WIDTH, HEIGHT
        for key, value in {"pix_fmt": "yuv420p", "gop_size": 12, **context}.items():
            setattr(stream.codec_context, key, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("codec", "reader"), [("libx264", "auto"), ("libx264", "pyav"), ("mpeg2video", "auto")])
@pytest.mark.parametrize("rotation", [0, 90])
def test_a_squashed_frame_is_the_whole_one_upright(tmp_path, codec, reader, rotation):
    video = read_video(write_video(tmp_path / "a.mp4", codec, frames=7, rotation=rotation), reader)
    whole, squashed = video.frames([5, 2]), video.frames([5, 2], side=56)
    assert squashed.shape == (2, 56, 56, 3)
    for picture, small in zip(whole, squashed, strict=True):
        expected = np.asarray(Image.fromarray(picture).resize((56, 56), Image.Resampling.BILINEAR), int)
        assert np.abs(small - expected).mean() < 8  # a picture turned wrongly is off by 60


def test_squashed_frames_are_those_of_the_reference_s_reader(shared):
    path = shared / "data/video/pyfeat_single_face.mp4"
    reference = decord.VideoReader(str(path), width=224, height=224).get_batch([3, 40]).asnumpy().astype(int)
    assert np.array_equal(read_video(path).frames([3, 40], side=224), reference)
    assert np.abs(read_video(path, "pyav").frames([3, 40], side=224) - reference).mean() < 0.3


def test_a_video_of_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", frames=2)
    monkeypatch.setenv("AFFECT_LIMITS", "video_megapixels=0.006")
    for reader in ("auto", "pyav"):
        with pytest.raises(MediaError, match=r"a\.mp4: expected at most 0\.006 million pixels"):
            read_video(path, reader)


@pytest.mark.parametrize(
    "file, reader, options",
    [
        ("closed.mp4", "decord", {"codec": "libx264"}),
        ("closed.mov", "decord", {"codec": "libx264", "max_b_frames": 0}),
        ("open.mp4", "pyav", {"codec": "mpeg4", "max_b_frames": 2}),
        ("open264.mp4", "pyav", {"codec": "libx264", "options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}}),
        (
            "open265.mp4",
            "pyav",
            {"codec": "libx265", "options": {"x265-params": "open-gop=1:bframes=3:log-level=none"}},
        ),
        ("stream.mpg", "pyav", {"codec": "mpeg1video"}),
        ("no_times.avi", "pyav", {"codec": "libx264"}),
        ("clip.mkv", "pyav", {"codec": "mpeg4", "max_b_frames": 2}),
        ("stream.ts", "pyav", {"codec": "libx264"}),
    ],
)
def test_every_frame_is_the_one_asked_for(tmp_path, file, reader, options):
    video = read_video(write_video(tmp_path / file, **options))
    assert (video.num_frames, video.reader) == (60, reader)
    assert video.fps == pytest.approx(25, abs=0.1)
    assert video.num_frames / video.fps == pytest.approx(2.4, abs=0.01)
    asked = [*np.random.default_rng(0).permutation(60).tolist(), 59, 7, 7]
    assert [number_of(frame) for frame in video.frames(asked)] == asked
    assert [number_of(frame) for frame in video.frames([30])] == [30]  # again, from another place


def test_frames_are_the_same_whether_kept_or_decoded_again(tmp_path, monkeypatch):
    path = write_video(tmp_path / "stream.mpg", "mpeg1video")
    kept, asked = read_video(path), [3, 59, 20]
    monkeypatch.setattr("extractors.media.decode._KEPT_BYTES", 10 * WIDTH * HEIGHT)
    decoded_again = read_video(path)
    assert decoded_again.num_frames == kept.num_frames == 60
    assert np.array_equal(decoded_again.frames(asked), kept.frames(asked))
    path.unlink()
    assert [number_of(frame) for frame in kept.frames([7, 50])] == [7, 50]  # decoded once
    with pytest.raises(MediaError, match="no such file"):
        decoded_again.frames(asked)


def test_decord_is_not_tried_where_pyav_is_asked_for(tmp_path, monkeypatch):
    def hang(*_, **__):
        raise AssertionError("decord was called")

    path = write_video(tmp_path / "clip.mp4")
    assert read_video(path).reader == "decord"
    monkeypatch.setattr(decord, "VideoReader", hang)
    video = read_video(path, reader="pyav")
    assert (video.reader, video.num_frames) == ("pyav", 60)
    assert [number_of(frame) for frame in video.frames([4, 50])] == [4, 50]
    with pytest.raises(ValueError, match="'opencv' is not known: expected auto or pyav"):
        read_video(path, reader="opencv")


@pytest.mark.parametrize("codec, reader", [("libx264", "decord"), ("mpeg4", "pyav")])
def test_a_turned_video_comes_upright_from_both_readers(tmp_path, codec, reader):
    for rotation, (top, left) in {90: ("any", RED), -90: ("any", BLUE), 180: (BLUE, "any")}.items():
        video = read_video(write_video(tmp_path / f"{rotation}.mp4", codec, frames=5, rotation=rotation))
        assert video.reader == reader
        (frame,) = video.frames([3])
        assert frame.shape[:2] == ((HEIGHT, WIDTH) if rotation == 180 else (WIDTH, HEIGHT))
        if top != "any":
            assert np.abs(frame[2, WIDTH // 2].astype(int) - top).max() < 40
        if left != "any":
            assert np.abs(frame[WIDTH // 2, 2].astype(int) - left).max() < 40


def test_a_gray_video_has_three_equal_channels(tmp_path):
    frames = read_video(write_video(tmp_path / "gray.mp4", "libx264", frames=4, pix_fmt="gray")).frames([0, 3])
    assert frames.shape == (2, HEIGHT, WIDTH, 3)
    assert np.ptp(frames.astype(int), axis=3).max() <= 2


def test_a_video_cut_off_ends_where_it_really_ends(tmp_path):
    path = write_video(tmp_path / "cut.mpg", "mpeg1video")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = read_video(path)
    assert 10 < video.num_frames < 50
    last = video.num_frames - 2  # the very last one may be half a picture
    assert number_of(video.frames([last])[0]) == last


def test_pyav_takes_over_where_decord_stops_in_the_middle(tmp_path, monkeypatch):
    def fail(*_):
        raise decord.DECORDError("no frame")

    video = read_video(write_video(tmp_path / "clip.mp4"))
    monkeypatch.setattr(decord.VideoReader, "get_batch", fail)
    assert [number_of(frame) for frame in video.frames([4, 50])] == [4, 50]
    assert video.reader == "pyav"


def test_a_frame_that_does_not_decode_is_an_error_and_no_other_frame(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4")
    video = read_video(path)

    def fail(*_):
        write_video(path, frames=20)  # stands for a file whose second half is broken
        raise decord.DECORDError("no frame")

    monkeypatch.setattr(decord.VideoReader, "get_batch", fail)
    with pytest.raises(MediaError, match="frame 50 of 60 cannot be decoded"):
        video.frames([4, 50])


def test_indices_outside_the_clip_are_refused(tmp_path):
    video = read_video(write_video(tmp_path / "clip.mp4", frames=5))
    for indices in ([5], [-1], []):
        with pytest.raises(IndexError, match=r"0\.\.4"):
            video.frames(indices)


def test_what_is_no_video_is_refused_in_one_sentence(tmp_path):
    whole = write_video(tmp_path / "whole.mp4")
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])  # its index is at the end
    (tmp_path / "text.mp4").write_text("no video at all\n" * 200)
    (tmp_path / "empty.mp4").touch()
    soundfile.write(tmp_path / "sound.wav", np.zeros(800), 8000)
    expected = {
        "half.mp4": "not a readable media file",
        "text.mp4": "not a readable media file",
        "empty.mp4": "the file is empty",
        "sound.wav": r"has no video stream \(found: audio\)",
        "missing.mp4": "no such file",
        ".": "no such file",
    }
    for file, reason in expected.items():
        with pytest.raises(MediaError, match=reason) as caught:
            read_video(tmp_path / file)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_frame_counts_are_those_that_openface_saw(shared):
    tables = sorted((shared / "data/openface/featureextraction").glob("*.csv"))
    assert len(tables) == 12
    for table in tables:
        (path,) = (shared / "data/video").glob(f"{table.stem}.m*")
        rows = pd.read_csv(table, skipinitialspace=True)
        video = read_video(path)
        assert video.num_frames == len(rows), path  # decord says 98 of pyfeat_no_face.mp4, whose edit list hides three
        assert video.num_frames / video.fps == pytest.approx(rows["timestamp"].iloc[-1], abs=0.06)


def test_both_readers_give_the_same_pixels_of_real_clips(shared):
    for name in ("pyfeat_single_face.mp4", "pyfeat_face_noface.mov"):  # H.264; HEVC of variable frame rate
        path = shared / "data/video" / name
        video = read_video(path)
        asked = [2, video.num_frames // 2, video.num_frames - 1]
        by_decord = video.frames(asked)
        assert video.reader == "decord"
        other = read_video(path, reader="pyav")
        assert (other.reader, other.num_frames) == ("pyav", video.num_frames)
        assert np.array_equal(by_decord, other.frames(asked))


def test_opencv_still_reads_png_files_beside_decord(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((4, 4, 3), np.uint8))
    code = "import sys, extractors.media.decode, cv2; sys.exit(cv2.imread(sys.argv[1]) is None)"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "x.png"], cwd=root).returncode == 0


def test_one_frame_is_a_video(tmp_path):
    video = read_video(write_video(tmp_path / "one.mp4", frames=1))
    assert video.num_frames == 1
    assert video.frames([0] * 8).shape == (8, HEIGHT, WIDTH, 3)
