"""Name the expressions of faces in images, a video or what a camera sees.

    python inference.py --cfg-path eval_configs/fer.yaml --ckpt runs/x --images a.jpg b.png faces
    python inference.py --cfg-path eval_configs/fer.yaml --ckpt runs/x --video a.mp4 --explain
    python inference.py --cfg-path eval_configs/fer.yaml --ckpt runs/x --webcam 0

This is inference.py for a configuration with `task: fer`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from affect.cli import add_offline


def main(arguments: list[str] | None = None) -> int:
    """Wire network, images and answers together; return the exit code: 1 where some could not be read."""
    args = parse_arguments(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    from rich.console import Console

    from affect.core.device import keep_freed_memory, pick_device
    from affect.expressions.config import PredictConfig, load_fer_config
    from affect.expressions.naming import name_images, name_video
    from affect.expressions.reader import open_reader
    from affect.expressions.summary import report
    from extractors.media.camera import camera_frames
    from extractors.media.decode import all_frames

    # run has a batch_size and a device, too, but here it is these that are meant
    options = [f"predict.{each}" if each.split("=")[0] in PredictConfig.model_fields else each for each in args.options]
    config = load_fer_config(args.cfg_path, options).predict
    reader = open_reader(config.model_copy(update={"ckpt": args.ckpt}) if args.ckpt else config)
    folder = Path(config.output_dir)
    if pick_device(config.device, "predict.device").type == "cpu":
        keep_freed_memory()
    if args.images:
        findings = name_images(reader, args.images, folder, args.explain)
    elif args.video:
        findings = name_video(reader, all_frames(args.video), str(args.video), folder, args.explain)
    else:
        frames = camera_frames(args.webcam, args.max_frames)
        findings = name_video(reader, frames, f"webcam{args.webcam}", folder, args.explain, live=True)
    return report(reader, findings, folder, Console())


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg-path", required=True, help="YAML configuration; its predict section holds the settings")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    add("--ckpt", help="best.safetensors, last.safetensors or a run's folder; default: predict.ckpt")
    add("--explain", action="store_true", help="draw what in each face spoke for its expression (Grad-CAM)")
    add("--max_frames", type=int, metavar="N", help="with --webcam: stop after N frames instead of at Ctrl+C")
    add_offline(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, nargs="+", metavar="PATH", help="images and folders of images")
    source.add_argument("--video", type=Path)
    source.add_argument("--webcam", type=int, metavar="NUMBER", help="camera to look through, as a rule 0")
    args = parser.parse_args(arguments)
    if args.max_frames is not None and (args.webcam is None or args.max_frames < 1):
        parser.error("--max_frames: expected a number above 0, with --webcam")
    return args
