"""One clip on the way that all clips go, in this process: whoever waits for it can stop it."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np

from affect.core.schema import Modality
from extractors.run.clip import ClipResult, log_warnings, prepare_clip
from extractors.run.encode import describe_clips, encode_clips
from extractors.run.session import Session

logger = logging.getLogger(__name__)

FRAMES_OFF = 0.1
"""Share of a video's frames by which its table may be off before it looks like another clip's."""


def extract_clip(
    session: Session, video: Path, audio: Path | None = None, openface_csv: Path | None = None
) -> ClipResult:
    """Return a clip with its features, as the stages would store them, and its AU analysis.

    Without anything to read or measure action units from, the clip has no AU rows. Raises ValueError when any part of
    it cannot be read.
    """
    settings = session.settings
    to_go_by = openface_csv or settings.openface_root or settings.openface_executable or settings.au_root
    au = settings.wants_au and (to_go_by is not None or settings.au_backend != "openface")
    with tempfile.TemporaryDirectory() as scratch:
        if settings.openface_executable and not settings.openface_root:
            openface_csv = openface_csv or Path(scratch) / f"{video.stem}.csv"
        result = prepare_clip(session.task(video.stem, settings.features, au, video, audio or video, openface_csv))
    log_warnings([result], set())
    _check(result)
    describe_clips(settings, session.describe, [result])
    encode_clips(settings, session.encoder, [result])
    _check(result)
    if Modality.AU in settings.features and not au:
        result.features[Modality.AU] = np.zeros((0, session.encoder(Modality.AU).dim), np.float32)
    _warn_of_another_table(result)
    return result


def _check(result: ClipResult) -> None:
    if result.errors:
        raise ValueError("; ".join(dict.fromkeys(result.errors.values())))


def _warn_of_another_table(result: ClipResult) -> None:
    measured = result.analysis.au_info.get("total_frames", 0) if result.analysis else 0
    if measured and result.num_frames and abs(measured - result.num_frames) > FRAMES_OFF * result.num_frames:
        logger.warning(
            "%s has %d frames, but its OpenFace table %d: is it the table of another clip?",
            result.task.video,
            result.num_frames,
            measured,
        )
