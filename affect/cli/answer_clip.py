"""`inference.py --video`: one clip's features are extracted as a data set's would be, and it is answered."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from affect.cli.extract import add_clip_flags, check_installed
from affect.core.schema import Clip, Modality

if TYPE_CHECKING:  # --help opens at once
    from affect.answer.answerer import Answerer
    from affect.answer.files import Answer
    from affect.data.config import DatasetConfig

_OWN = (
    *("au_root", "au_backend", "openface_root", "openface_executable", "openface_args"),
    *("face_root", "face_finder"),
)
"""Flags that say how this clip is read, as they are named in the settings of extraction."""
_OR_SECTION = ("sampling", "frame_geometry", "precision", "allow_mismatch")
"""The same, where the configuration's data set says it unless they do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that belong to one clip; what they leave open is as the configuration's data set has it."""
    group = parser.add_argument_group("one clip", "what is not given is read from the clip and the configuration")
    add = group.add_argument
    add("--video", type=Path, nargs="+", metavar="PATH", help="answer for this one clip instead of a data set")
    add("--audio", type=Path, help="its sound; default: that of the video")
    add("--subtitle", default="", help="the words spoken in it")
    add("--nonverbal_text", help="what its face shows, in words, for a model that reads them (use_nonverbal_text)")
    add("--openface_csv", type=Path, help="its OpenFace table")
    add("--mer-factory-output", "--mer_factory_output", dest="au_root", type=Path, help="root of AU JSON to read first")
    add_clip_flags(group)
    parser.set_defaults(sampling=None)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with one line where a flag of one clip is given without --video, or needs what is absent.

    Raises ValueError where --video is not one clip, or a file is not there.
    """
    if args.video:
        args.video, *more = args.video
        if more or args.video.is_dir():
            found = f"{1 + len(more)} paths" if more else f"the folder {args.video}"
            raise ValueError(
                f"--video: expected one clip, found {found}; make a table with a column `name` and give it as csv_path "
                "of a data set, or call once for each clip"
            )
        for path in filter(None, (args.video, args.audio, args.openface_csv)):
            if not path.is_file():
                raise ValueError(f"{path}: no such file; check the path")
        check_installed(args)
        return
    names = ["audio", "subtitle", "nonverbal_text", "openface_csv", *_OWN, *_OR_SECTION]
    changed = [name for name in names if getattr(args, name) != parser.get_default(name)]
    if changed:
        flags = {"au_root": "mer-factory-output", "sampling": "frame_sampling"}
        parser.error(f"--{flags.get(changed[0], changed[0])} is of one clip: give --video with it")


def answer_clip(args: argparse.Namespace, answerer: Answerer, section: DatasetConfig, kind: str) -> Answer:
    """Extract one clip's features as a data set's would be, and answer."""
    from affect.answer.answerer import with_action_units
    from affect.cli.au_fill import sentence_maker
    from affect.cli.live import extraction_settings, like_training, warn_of_other_features
    from affect.data.captions import caption_of
    from extractors.run.clip import extract_clip
    from extractors.run.live import shared_encoder
    from extractors.run.session import Session

    settings = extraction_settings(
        "clip",
        like_training(answerer.config, section),
        streams=section.layout.needed,
        device=str(next(answerer.model.parameters()).device),
        **{name: getattr(args, name) for name in _OWN},
        **{name: given for name in _OR_SECTION if (given := getattr(args, name))},
    )
    session = Session(settings, describe=sentence_maker(answerer.config.model), build=shared_encoder)
    warn_of_other_features(answerer.config, {stream: session.provenance(stream) for stream in session.specs})
    caption, describe = args.nonverbal_text, section.captioned and args.nonverbal_text is None
    result = extract_clip(session, args.video, args.audio, args.openface_csv, describe)
    if describe and result.analysis:
        caption = caption_of(result.analysis)
    clip = Clip(name=args.video.stem, dataset="clip", subtitle=args.subtitle, nonverbal=caption)
    (answer,) = answerer.answer([clip], [result.features], kind, () if result.analysis else (Modality.AU,))
    return with_action_units(answer, result.analysis) if result.analysis else answer
