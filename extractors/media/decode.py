"""Reading exactly the frames of a clip that are asked for; its sound, and the short pieces that encoders take.

Two readers of pictures: decord seeks and so is the quicker one, but it lands on other frames than asked
for wherever a seek is not exact (measured: MPEG program streams, AVI, open groups of pictures,
edit lists). It is used only where its seeks were found exact, and PyAV, which decodes from the
start, everywhere else. Both give the displayed orientation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2  # noqa: F401  before decord, whose zlib would keep OpenCV from reading PNG files
import decord
import librosa
import numpy as np
import soundfile

from affect.core.errors import MediaError
from affect.core.reading import limit, reading, require_memory, require_within

SAMPLE_RATE = 16_000
CLIP_SECONDS = 2
READERS = ("auto", "pyav")

# codec -> NAL unit types of pictures that need nothing before them (table 7-1 of H.264 and of H.265)
_IDR_TYPES = {"h264": {5}, "hevc": {19, 20}}
_EXACT_CONTAINER = "mov,mp4,m4a,3gp,3g2,mj2"  # libavformat's one name for MP4 and MOV
# what libsndfile reads exactly; everything else is a container for PyAV
_SOUND_FILES = {".wav", ".flac", ".ogg", ".aiff", ".aif"}
_ADVICE = "expected a whole video or sound file, so fetch it again or re-encode it"
_RATES = range(1_000, 768_001)  # samples a second that sound may have
_KEPT_BYTES = 128 * 2**20  # of decoded frames that are kept after counting them, before a clip is decoded twice


@dataclass
class Video:
    """An opened video: what is known of it, and its frames on demand (use `read_video` to make one)."""

    path: Path
    num_frames: int
    """Frames that really decode; headers and edit lists often claim others."""
    fps: float
    """Mean frame rate; the true times of a variable-rate clip vary around it."""
    reader: str
    """decord or pyav: who reads the frames."""
    _decord: decord.VideoReader | None = None
    _decoded: list[av.VideoFrame] | None = None

    def frames(self, indices: Sequence[int], side: int | None = None) -> np.ndarray:
        """Return frames as RGB uint8 [T, H, W, 3] in the order asked for, upright as a player shows them.

        side: squash each whole frame to side x side, as decord does where it is told so (FFmpeg's bilinear scaling).
        Raises IndexError for an index outside the clip, MediaError where a frame does not decode.
        """
        wanted = np.asarray(indices, dtype=int)
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise IndexError(f"{self.path}: expected indices in 0..{self.num_frames - 1}, found {list(indices)}")
        unique, order = np.unique(wanted, return_inverse=True)
        with reading(self.path, "a video", _ADVICE, MediaError):
            return self._pictures(unique.tolist(), side)[order]

    def _pictures(self, indices: list[int], side: int | None) -> np.ndarray:
        """Return frames at sorted, distinct indices."""
        if self._decord is not None:
            try:
                small = {"width": side, "height": side, "num_threads": 1}
                reader = decord.VideoReader(str(self.path), **small) if side else self._decord
                return reader.get_batch(indices).asnumpy()
            except decord.DECORDError:  # broken in the middle: PyAV skips what does not decode
                self.reader, self._decord = "pyav", None
        if self._decoded is not None:
            return np.stack([_picture(self._decoded[i], side) for i in indices])
        pictures = _read_with_pyav(self.path, indices, side)
        if len(pictures) < len(indices):
            lost = indices[len(pictures)]
            raise MediaError(f"{self.path}: frame {lost} of {self.num_frames} cannot be decoded; {_ADVICE}")
        return np.stack(pictures)


def read_video(path: str | Path, reader: str = "auto") -> Video:
    """Open a video with the reader that fits it, or with `pyav` where decord is not to be tried.

    Raises MediaError for a file that is missing, empty, no video, or has no frame that decodes,
    ValueError for another reader.
    """
    if reader not in READERS:
        raise ValueError(f"reader {reader!r} is not known: expected {' or '.join(READERS)}; correct the call")
    path = Path(path)
    with reading(path, "a video", _ADVICE, MediaError):
        video = _open_with_decord(path) if reader == "auto" else None
        return video or _open_with_pyav(path)


def _open_with_decord(path: Path) -> Video | None:
    """Return the video where decord would give exactly the frames asked for, else None."""
    times = _exact_times(path)
    if not times:
        return None
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
    except (decord.DECORDError, RuntimeError):
        return None
    return Video(path, len(times), _rate(times), reader="decord", _decord=reader) if len(reader) == len(times) else None


def _open_with_pyav(path: Path) -> Video:
    """Count the frames by decoding them all, and keep them where they are few enough."""
    times: list[float | None] = []
    decoded: list[av.VideoFrame] = []
    size = 0
    for frame in _decode_video(path):
        times.append(frame.time)
        size += sum(plane.buffer_size for plane in frame.planes)
        if size <= _KEPT_BYTES:
            decoded.append(frame)
        else:
            decoded.clear()
    if not times:
        raise MediaError(f"{path}: no frame of its video stream can be decoded; expected a video, so fetch it again")
    return Video(path, len(times), _rate(times), reader="pyav", _decoded=decoded or None)


def open_media(path: Path) -> av.container.InputContainer:
    """Open a media file with PyAV; raises MediaError where that is not possible."""
    if not path.is_file():
        raise MediaError(f"{path}: no such file; expected a video or sound file, so check the folder and the name")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty; expected a video or sound file, so fetch it again")
    try:
        return av.open(str(path), metadata_errors="ignore")
    except av.FFmpegError as error:
        raise MediaError(f"{path}: not a readable media file ({error.strerror}); {_ADVICE}") from None


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # a cover picture is no video
        found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise MediaError(f"{path}: has no video stream (found: {found}); expected a video, so check which file this is")
    context = _decodable(stream, path).codec_context
    require_within("video_megapixels", context.width * context.height / 1e6, path)
    context.options = {"max_pixels": f"{limit('video_megapixels') * 1e6:.0f}"}  # in later frames, too
    context.thread_count = 1  # clips are decoded side by side in worker processes
    return stream


def _decodable(stream: av.stream.Stream, path: Path) -> av.stream.Stream:
    if stream.codec_context is None:
        raise MediaError(
            f"{path}: its {stream.type} is in a codec that FFmpeg {av.ffmpeg_version_info} cannot decode; expected one "
            "that it can, so re-encode the file"
        )
    return stream


def count_frames(path: Path) -> int:
    """Return how many frames a video holds by its packets, none of which is decoded; 0 where that cannot be told."""
    try:
        with open_media(path) as container:
            stream = container.streams.best("video")
            return sum(packet.size > 0 for packet in container.demux(stream)) if stream else 0
    except (MediaError, av.FFmpegError):
        return 0


def _exact_times(path: Path) -> list[float | None]:
    """Return the times of all packets in seconds where seeking in this file finds the frame asked for, else nothing.

    It does in MP4/MOV with H.264 or HEVC, when no packet is cut off by an edit list and every key
    frame resets the decoder (no open group of pictures).
    """
    with open_media(path) as container:
        stream = _video_stream(container, path)
        codec = stream.codec_context.name
        if container.format.name != _EXACT_CONTAINER or codec not in _IDR_TYPES:
            return []
        times: list[float | None] = []
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.is_discard or (packet.is_keyframe and not _resets_decoder(bytes(packet), codec)):
                    return []
                times.append(None if packet.pts is None else float(packet.pts * stream.time_base))
        except av.FFmpegError:
            return []
    return times


def _resets_decoder(packet: bytes, codec: str) -> bool:
    """Whether a packet of length-prefixed NAL units, as MP4 has them, holds an IDR picture."""
    start = 0
    while start + 4 < len(packet):
        header = packet[start + 4]
        if (header & 31 if codec == "h264" else header >> 1 & 63) in _IDR_TYPES[codec]:
            return True
        start += 4 + int.from_bytes(packet[start : start + 4])
    return False


def decode(container: av.container.InputContainer, stream: av.stream.Stream) -> Iterator[av.frame.Frame]:
    """Yield every frame of a stream that decodes, from the start; broken packets are skipped, as players do."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except av.FFmpegError:  # after an error of its own `packets` has ended, so this comes to an end
            continue
        if packet is None:
            return
        yield from frames


def all_frames(path: str | Path) -> Iterator[tuple[float, np.ndarray]]:
    """Yield every frame with its time in seconds from the first, one in memory at a time: RGB uint8 [H, W, 3], upright.

    Raises MediaError for a file that is missing, empty or no video.
    """
    first = None
    with reading(path, "a video", _ADVICE, MediaError):
        for i, frame in enumerate(_decode_video(Path(path))):
            time = frame.time if frame.time is not None else i / 25
            first = time if first is None else first
            yield time - first, _picture(frame)


def _decode_video(path: Path) -> Iterator[av.VideoFrame]:
    with open_media(path) as container:
        yield from decode(container, _video_stream(container, path))


def _read_with_pyav(path: Path, indices: list[int], side: int | None) -> list[np.ndarray]:
    """Return the frames at sorted, distinct indices, fewer where the video ends before."""
    pictures: list[np.ndarray] = []
    for i, frame in enumerate(_decode_video(path)):
        if i == indices[len(pictures)]:
            pictures.append(_picture(frame, side))
            if len(pictures) == len(indices):
                break
    return pictures


def _picture(frame: av.VideoFrame, side: int | None = None) -> np.ndarray:
    """Return a frame as RGB uint8 [H, W, 3], upright."""
    shown = frame.reformat(side, side, format="rgb24", interpolation="BILINEAR") if side else frame
    # FFmpeg counts degrees counter-clockwise, as np.rot90 does
    return np.rot90(shown.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)


def _rate(times: list[float | None]) -> float:
    """Return the frames per second of frames at these times; 25 where they are not known."""
    known = [time for time in times if time is not None]
    span = max(known) - min(known) if known else 0.0
    return (len(known) - 1) / span if span > 0 else 25.0


def load_audio(path: str | Path) -> np.ndarray | None:
    """Return the sound of a file as float32 mono [N] at `SAMPLE_RATE`, or None where it has no sound stream.

    Channels are averaged. Containers are decoded at their own rate and resampled by librosa,
    since decord's resampling is wrong. Raises MediaError for a file that cannot be read.
    """
    path = Path(path)
    with reading(path, "sound", _ADVICE, MediaError):
        mono, rate = _read_sound_file(path) if path.suffix.lower() in _SOUND_FILES else _read_container(path)
        if mono is None:
            return None
        if not np.isfinite(mono).all():
            raise MediaError(f"{path}: the sound holds NaN or infinity; expected finite samples, so fetch it again")
        if rate != SAMPLE_RATE:
            mono = librosa.resample(mono, orig_sr=rate, target_sr=SAMPLE_RATE)
        return mono.astype(np.float32, copy=False)


def sound_clips(wave: np.ndarray, count: int = 8) -> np.ndarray:
    """Cut a sound [N] into pieces of `CLIP_SECONDS` at equal steps from start to end: [count, 32000].

    Piece k starts at k * (duration - CLIP_SECONDS) / (count - 1); a shorter sound is padded with
    zeros, so that all its pieces are the same. A longer one is covered with overlaps or gaps.
    """
    length = CLIP_SECONDS * SAMPLE_RATE
    wave = np.pad(np.asarray(wave, dtype=np.float32), (0, max(length - len(wave), 0)))
    room = len(wave) - length
    starts = [k * room // max(count - 1, 1) for k in range(count)]
    return np.stack([wave[start : start + length] for start in starts])


def _read_sound_file(path: Path) -> tuple[np.ndarray | None, int]:
    """Return samples [N] and their rate; None where there are no samples."""
    try:
        with soundfile.SoundFile(str(path)) as file:
            _require_ordinary(file.frames, file.samplerate, path)
            blocks = file.blocks(1 << 20, dtype="float32", always_2d=True)
            mono = np.concatenate([block.T.mean(axis=0) for block in blocks]) if file.frames else None
            return mono, file.samplerate
    except soundfile.LibsndfileError:  # missing, broken, or another format under this name: PyAV says which
        return _read_container(path)


def _read_container(path: Path) -> tuple[np.ndarray | None, int]:
    """Return samples [N] of the first sound stream and their rate; None where there is no such stream."""
    pieces, length = [], 0
    with open_media(path) as container:
        if not container.streams.audio:
            return None, 0
        to_float = av.AudioResampler(format="fltp")  # changes the sample format only
        for frame in decode(container, _decodable(container.streams.audio[0], path)):
            for piece in to_float.resample(frame):
                length += piece.samples
                # the decoder's rate: the header gives half of it for some AAC
                _require_ordinary(length, to_float.rate, path)
                pieces.append(piece.to_ndarray().mean(axis=0))
    if not pieces:
        raise MediaError(f"{path}: no sample of its sound stream can be decoded; expected sound, so fetch it again")
    return np.concatenate(pieces), to_float.rate


def _require_ordinary(length: int, rate: int, path: Path) -> None:
    """Raise ValueError for sound whose rate is none, or that is too long for the memory, here or at `SAMPLE_RATE`."""
    if rate not in _RATES:
        known = f"{_RATES[0]:,} to {_RATES[-1]:,}"
        raise ValueError(f"{path}: expected {known} samples a second, found {rate:,}; {_ADVICE}")
    require_memory(8 * length * max(1, SAMPLE_RATE / rate), path)  # pieces, and these joined
