"""Every reader of files that others made: what whole ones look like, and how one is read."""

import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import save_file

from affect.answer.files import Answer, resume_answers, write_answers
from affect.core.au_json import AuAnalysis, read_au_json, sentences, write_au_json
from affect.core.causal_lm import add_lora, load_causal_lm
from affect.core.config import TASKS, parse, read_yaml, task_name
from affect.core.tensors import read_tensors
from affect.core.weights import resolve_weights
from affect.data.captions import read_captions
from affect.data.config import Config, DatasetConfig
from affect.data.manifest import read_manifest
from affect.data.npz_corpus import read_corpus
from affect.data.prompts import DEFAULT_PROMPTS, load_prompts
from affect.data.tables import read_table
from affect.engine.checkpoint import TrainState, read_state
from affect.engine.launch import start_accelerator
from affect.engine.metrics import Metrics, read_metrics
from affect.engine.trainer import Trainer, start_trainer, write_state
from affect.evaluate.results import read_answers
from affect.evaluate.truths import Task, read_truth
from affect.expressions.config import FerConfig, ImageModelConfig, ImagesConfig
from affect.expressions.fer2013 import read_fer2013
from affect.expressions.image_files import read_image
from affect.expressions.models import build_model
from affect.expressions.models.published import read_weights
from affect.expressions.network_file import ModelCard, read_network, save_model
from affect.expressions.samples import InputSpec
from affect.expressions.votes import read_votes
from affect.faces.finders import load_face_array
from affect.features.packed import Packed
from affect.features.packing import pack
from affect.features.store import FeatureStore
from affect.tasks.au_agent_config import AgentConfig
from affect.tasks.au_agent_records import COLUMNS, Source, find_source, read_records
from affect.tasks.reference_checkpoint import read_pth
from extractors.au.openface import analyse_openface
from extractors.media.decode import load_audio, read_video
from extractors.media.sampling import frame_indices
from extractors.run.journal import ClipRecord, Journal, read_states
from prepare_au_agent_data import convert
from tiny_world import save_tiny_llm
from toy_clips import write_table, write_video
from toy_store import AU, FRAME, SPECS, fill_store
from toy_task import ToyTask, toy_run

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Reader:
    """One way in."""

    file: str
    """Where below a folder of its own the file lies."""
    whole: Callable[[Path], list[bytes]]
    """Folder, to which other files may be written that the reader needs -> contents of whole files."""
    read: Callable[[Path], object]
    share: float = 1
    """Of the inputs that each reader gets; slow ones get fewer."""


def written(path: Path, write: Callable[[Path], object]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return path.read_bytes()


def real(*patterns: str, most: int = 20_000) -> list[bytes]:
    """Return the beginnings of real files, up to the last end of a line where they are longer; none where absent."""
    found = [path.read_bytes() for pattern in patterns for path in sorted(SHARED.glob(pattern))]
    return [text if len(text) <= most else text[: text.rfind(b"\n", 0, most) + 1] for text in found]


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    content = io.BytesIO()
    save(content)
    return content.getvalue()


def lines(*entries: dict) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


# -- action units ----------------------------------------------------------------------------------


def openface(folder: Path) -> list[bytes]:
    return [written(folder / "seed.csv", write_table), *real("openface/**/*.csv", "merfactory/*.csv")]


def au_json(folder: Path) -> list[bytes]:
    write_table(folder / "seed.csv")
    analysis = analyse_openface(folder / "seed.csv")
    analysis.summary_description = {"1": "The lip corners are pulled up."}
    analysis.au_info |= {"frames_without_face": [[11, 12]]}
    return [written(folder / "seed.json", lambda path: write_au_json(analysis, path)), *real("merfactory/*.json")]


def use_au_json(path: Path) -> None:
    analysis: AuAnalysis = read_au_json(path)
    sentences(analysis)
    frame_indices(max(analysis.au_info.get("total_frames", 0), 1), 8, "emotion_peak", analysis.au_info)
    write_au_json(analysis, path.with_name("again.json"))


# -- features --------------------------------------------------------------------------------------


def arrays(folder: Path) -> list[bytes]:
    fill_store(folder)
    more = [np.ones((3, 4)), np.asfortranarray(np.ones((2, 4), np.float16)), np.ones(4, ">f4")]
    kept = [path.read_bytes() for path in sorted((folder / "toy" / FRAME.folder).glob("*.npy"))]
    return kept + [saved(lambda file, array=array: np.save(file, array)) for array in more]


def packed(folder: Path) -> list[bytes]:
    store = fill_store(folder)
    pack(store.root, delete=True)
    return [(store.root / "packed" / "data.mdb").read_bytes()]


def read_store(path: Path) -> None:
    store = FeatureStore(path.parents[2], "toy")
    try:
        for spec in SPECS:
            store.missing(spec, ["a", "z.1"])
            store.read(spec, "z.1")
    finally:
        Packed(str(store.root / "packed")).close()


def face_arrays(folder: Path) -> list[bytes]:
    return [saved(lambda file: np.save(file, np.full((2, 8, 8, 3), 7, np.uint8)))]


# -- tables, labels, answers -----------------------------------------------------------------------

CLIPS = b"name,subtitle,openset,reason,split\na,i see,\"['happy', 'sad']\",\"Smiles, so happy.\",train\nb,,sad,,test\n"
CORPUS = {"a": {"emo": np.str_("happy"), "val": np.float32(0.5)}, "b": {"emo": "sad", "val": -1.0}}


def workbook(folder: Path) -> list[bytes]:
    from openpyxl import Workbook

    book = Workbook()
    for row in (["name", "label"], ["a", "happy"], ["b", 3], ["c", 2.5]):
        book.active.append(row)
    return [written(folder / "seed.xlsx", book.save)]


def read_clips(path: Path) -> None:
    read_manifest("toy", DatasetConfig(csv_path=str(path)), None)


def answers(folder: Path) -> list[bytes]:
    given = [Answer(name, "toy", "Why?", "Smiles, so happy.", ["face"], [], "i see", {"AU12": 2.0}) for name in "ab"]
    return [written(folder / "seed.jsonl", lambda path: write_answers(path, given))]


def read_npz_answers(path: Path) -> None:
    for name, said in read_answers(path).items():
        str(name), str(said)


def settings(folder: Path) -> list[bytes]:
    (folder / "a.jsonl").unlink(missing_ok=True)
    resume_answers(folder / "a.jsonl", {"question": "Why?", "seed": 1})
    (folder / "a.jsonl").write_bytes(answers(folder)[0])
    return [(folder / "a.settings.json").read_bytes()]


# -- configurations --------------------------------------------------------------------------------


def configurations(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(ROOT.glob("*_configs/*.yaml"))]


def read_configuration(path: Path) -> None:
    content = read_yaml(path)
    kind = dict(zip(TASKS, (Config, AgentConfig, FerConfig), strict=True))[task_name(content, str(path))]
    parse(kind, content, str(path))


def read_weights_table(path: Path) -> None:
    os.environ["AFFECT_WEIGHTS"] = str(path)
    try:
        resolve_weights("HUBERT_LARGE")
    finally:
        del os.environ["AFFECT_WEIGHTS"]


# -- runs and weights ------------------------------------------------------------------------------

STATE = TrainState(2, 6, 0.5, history=[{"epoch": 1, "step": 3, "lr": 0.1, "val_loss": 0.7}], sums={"steps": 1.0})


@cache
def trainer(folder: Path) -> Trainer:
    run = toy_run(folder, ema=0.9).run
    return start_trainer(ToyTask(run), start_accelerator(run))


def optimizer(folder: Path) -> list[bytes]:
    made = trainer(folder)
    made.next_step(0.01)
    write_state(folder, made.state())
    (folder / "config.yaml").write_text("run: {optimizer: adamw}\n")
    return [(folder / "optimizer.pt").read_bytes()]


def trained(folder: Path) -> list[bytes]:
    optimizer(folder)
    return [(folder / "trained.safetensors").read_bytes()]


def adapter(folder: Path) -> list[bytes]:
    save_tiny_llm(folder / "llm", ["The lip corners are pulled up, so the person feels happy."] * 4)
    model = load_causal_lm(folder / "llm")
    add_lora(model, LoraConfig(r=2, target_modules=["q_proj"]), False, "toy").save_pretrained(folder)
    return [(folder / "adapter_config.json").read_bytes()]


def metrics(_: Path) -> list[bytes]:
    steps = [{"step": step, "epoch": 1 + step // 4, "lr": 0.1, "loss": 0.5} for step in range(1, 7)]
    return [lines(*steps[:3], {"epoch": 1, "step": 3, "lr": 0.1, "val_loss": 0.7}, *steps[3:])]


def use_metrics(path: Path) -> None:
    Metrics(path.parent, path.parent / "checkpoint_000002", STATE).close()
    read_metrics(path.parent)


def network(folder: Path) -> list[bytes]:
    config = ImageModelConfig(arch="compact", width=0.25, img_size=24)
    card = ModelCard(config, ("anger", "joy"), InputSpec(24, False, (0.5,) * 3, (0.5,) * 3))
    weights = dict(list(build_model(config, 2).state_dict().items())[:6])
    return [written(folder / "seed.safetensors", lambda path: save_model(path, weights, card))]


def pickled(_: Path) -> list[bytes]:
    content = {"model": {"a.weight": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.int64)}, "epoch": 3}
    old = saved(lambda file: torch.save(content, file, _use_new_zipfile_serialization=False))
    return [saved(lambda file: torch.save(content, file)), old]


def tensors(folder: Path) -> list[bytes]:
    weights = {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}
    return [written(folder / "seed.safetensors", lambda path: save_file(weights, path))]


def journal(folder: Path) -> list[bytes]:
    with Journal(folder / "seed", "0of1") as log:
        log.append(ClipRecord("a", ["decode"], ["face"], {"audio": ("no sound", "f1")}, seconds={"decode": 0.1}))
        log.append(ClipRecord("b", ["decode"], faceless=True, reader="pyav"))
    return [(folder / "seed" / "journal" / "0of1.jsonl").read_bytes()]


# -- pictures, sound, videos -----------------------------------------------------------------------


def pictures(_: Path) -> list[bytes]:
    gradient = Image.fromarray(np.arange(24 * 24 * 3, dtype=np.uint16).astype(np.uint8).reshape(24, 24, 3))
    forms = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
    return [saved(lambda file, form=form: gradient.save(file, form)) for form in forms]


def sound(form: str) -> Callable[[Path], list[bytes]]:
    tone = np.sin(np.arange(4000) / 20)
    return lambda _: [saved(lambda file: soundfile.write(file, tone, 16_000, format=form))]


def videos(folder: Path) -> list[bytes]:
    endings = ("mp4", "avi", "mkv", "mpg")
    by_pyav = [written(folder / f"seed.{ending}", lambda path: write_video(path, 4)) for ending in endings]
    return [*by_pyav, written(folder / "seed.mp4", lambda path: write_video(path, 4, codec="libx264"))]  # by decord


def watch(path: Path) -> None:
    video = read_video(path)
    video.frames([0, video.num_frames - 1])
    load_audio(path)


def fer2013(_: Path) -> list[bytes]:
    rows = [f"{i},{' '.join(['7'] * 2304)},{usage}" for i, usage in enumerate(("Training", "PublicTest", "Training"))]
    return ["\n".join(["emotion,pixels,Usage", *rows, ""]).encode()]


VOTES = b"Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
VOTES += b"Training,a.png,4,0,0,1,3,2,0,0,0,0\nTraining,,0,0,0,0,0,0,0,0,0,10\n"

RECORDS = [{"instruction": "Describe.", "input": "AU descriptions: Blink (intensity: 2.00)", "output": "Blinks."}] * 2

READERS = {
    "AU JSON": Reader("a.json", au_json, use_au_json),
    "OpenFace table": Reader("a.csv", openface, analyse_openface, 0.5),
    "feature array": Reader(f"toy/{FRAME.folder}/z.1.npy", arrays, read_store),
    "sidecar": Reader(
        f"toy/{AU.folder}/provenance.json",
        lambda folder: [arrays(folder) and (folder / "toy" / AU.folder / "provenance.json").read_bytes()],
        read_store,
    ),
    "packed features": Reader("toy/packed/data.mdb", packed, read_store),
    "face array": Reader("a.npy", face_arrays, lambda path: load_face_array(path.parent, "a")),
    "clips": Reader("a.csv", lambda _: [CLIPS, *real("text/MELD_dev*.csv", most=3000)], read_clips),
    "packed table": Reader("a.csv.gz", lambda _: [gzip.compress(CLIPS)], read_table),
    "workbook": Reader("a.xlsx", workbook, read_table, 0.3),
    "labels .npz": Reader(
        "a.npz",
        lambda _: [saved(lambda file: np.savez(file, test_corpus=CORPUS, n=np.arange(3)))],
        lambda path: read_corpus(path, "emo", {"test_corpus": ".*"}),
    ),
    "labels .json": Reader(
        "a.json", lambda _: [b'{"a": ["happy"], "b": "sad"}'], lambda path: read_truth(path, Task.EW)
    ),
    "answers .npz": Reader(
        "a.npz",
        lambda _: [
            saved(lambda file: np.savez(file, name2reason=np.array({"a": "Happy."}, dtype=object))),
            saved(lambda file: np.savez(file, filenames=["a", "b"], fileitems=["[sad]", "[]"])),
        ],
        read_npz_answers,
    ),
    "answers .jsonl": Reader("a.jsonl", answers, read_answers),
    "settings of answers": Reader(
        "a.settings.json",
        settings,
        lambda path: resume_answers(path.with_name("a.jsonl"), {"question": "Why?", "seed": 1}),
    ),
    "configuration": Reader("a.yaml", configurations, read_configuration),
    "AFFECT_WEIGHTS": Reader("a.yaml", lambda _: [b"HUBERT_LARGE: /models/h\nMINE: {a: 1}\n"], read_weights_table),
    "prompts": Reader("a.yaml", lambda _: [DEFAULT_PROMPTS.read_bytes()], load_prompts),
    "captions": Reader(
        "a.json",
        lambda _: [b'{"Toy": {"a": {"caption": "The lips part."}, "b": {"caption": null}}, "CH-SIMS v2": {}}'],
        lambda path: read_captions(str(path), "toy"),
    ),
    "records of faces": Reader(
        "a.jsonl",
        lambda _: [lines(*RECORDS), json.dumps(RECORDS).encode(), *real("text/*.jsonl", most=4000)],
        lambda path: (read_records(Source(path, COLUMNS), ""), list(convert(path))),
    ),
    "dataset_info.json": Reader(
        "dataset_info.json",
        lambda _: [b'{"mine": {"file_name": "r.jsonl", "columns": {"prompt": "ask", "response": "say"}}}'],
        lambda path: find_source(str(path.parent), "mine"),
    ),
    "state of a run": Reader(
        "state.json", lambda _: [json.dumps(vars(STATE)).encode()], lambda path: read_state(path.parent)
    ),
    "metrics of a run": Reader("metrics.jsonl", metrics, use_metrics),
    "optimizer of a run": Reader("optimizer.pt", optimizer, lambda path: trainer(path.parent).load(path.parent, 1)),
    "average of a run": Reader("trained.safetensors", trained, lambda path: trainer(path.parent).load(path.parent, 1)),
    "journal": Reader("journal/0of1.jsonl", journal, lambda path: read_states(path.parents[1])),
    "adapter": Reader(
        "adapter_config.json", adapter, lambda path: load_causal_lm(path.parent / "llm", adapter=path.parent), 0.1
    ),
    "network": Reader("a.safetensors", network, read_network),
    "published weights": Reader("a.pth", pickled, read_weights),
    "reference checkpoint": Reader("a.pth", pickled, read_pth),
    "tensors": Reader("a.safetensors", tensors, lambda path: read_tensors(path, "weights")),
    "FER2013": Reader("a.csv", fer2013, lambda path: read_fer2013(path, ImagesConfig(data_root=str(path.parent)))),
    "votes": Reader("a.csv", lambda _: [VOTES], read_votes),
    "picture": Reader("a.png", pictures, read_image),
    "sound .wav": Reader("a.wav", sound("WAV"), load_audio),
    "sound .flac": Reader("a.flac", sound("FLAC"), load_audio),
    "sound .ogg": Reader("a.ogg", sound("OGG"), load_audio),
    "video": Reader("a.mp4", videos, watch, 0.5),
}
