"""Users' own files and the recommended ones, on miniatures of published data sets, with tiny stand-ins for weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from affect.cli import answer as inference
from affect.cli import train
from affect.core.au_json import au_json_path, read_au_json, write_au_json
from affect.core.schema import Modality
from extractors.au.openface import analyse_openface
from extractors.au.templates import describe_clips
from extractors.run.driver import run
from extractors.run.session import Session, Settings
from extractors.run.workers import ClipWorkers
from miniature_datasets import WRITERS
from tiny_encoders import save
from toy_answers import answers_file, records
from toy_clips import write_clips

SHIPPED = Path(__file__).resolve().parents[3]
CLIPS = {"mercaptionplus": ["a1", "a2", "a3"], "mer2023": ["m3"]}
FOLDERS = {"mercaptionplus": "mer2025-dataset", "mer2023": "mer2023-dataset-process"}
STREAMS = (Modality.FRAME, Modality.FACE, Modality.AUDIO, Modality.AU)
SMALL = [
    "model.preextracted_visual_dim=20",
    "model.preextracted_acoustic_dim=16",
    "model.preextracted_au_dim=20",
    "model.qformer_hidden_size=16",
    "model.qformer_heads=2",
    "model.qformer_intermediate_size=32",
    "run.max_epoch=1",
    "run.iters_per_epoch=2",
    "run.warmup_steps=0",
    "run.num_workers=0",
    "run.init_lr=0.1",
    "run.visualize_training=false",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_llm):
    """Published files, raw clips and AU JSON of two data sets; tiny models under the names of the true ones."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for name, clips in CLIPS.items():
        WRITERS[name](root / "data")
        folder = root / "data" / FOLDERS[name]
        write_clips(folder, clips)
        for clip in clips:
            place = folder / "openface_face" / (clip if name == "mercaptionplus" else "")
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / f"{clip}.npy", rng.integers(0, 256, (9, 112, 112, 3), dtype=np.uint8))
            (analysis,) = describe_clips([(analyse_openface(folder / "openface" / f"{clip}.csv"), range(8))])
            write_au_json(analysis, au_json_path(root / "au", name, clip))
    kinds = {"CLIP_VIT_LARGE": "clip", "HUBERT_LARGE": "hubert", "CLIP_VITB32": "clip_text"}
    weights = {name: f"hf:{save(kind, root)}" for name, kind in kinds.items()}
    (root / "weights.yaml").write_text(yaml.safe_dump({**weights, "Qwen25": str(tiny_llm)}))
    return root


@pytest.fixture(scope="module")
def features(world):
    """Root of the stored features of both data sets, frames at even steps and at peaks."""
    with pytest.MonkeyPatch.context() as patch, ClipWorkers(count=1, time_limit=60) as pool:
        patch.setenv("AFFECT_WEIGHTS", str(world / "weights.yaml"))
        for name, clips in CLIPS.items():
            folder = world / "data" / FOLDERS[name]
            roots = {"video_root": folder / "video", "audio_root": folder / "audio", "au_root": world / "au"}
            roots |= {"face_root": folder / "openface_face", "save_root": world / "features"}
            for sampling, streams in (("uniform", STREAMS), ("emotion_peak", (Modality.FRAME,))):
                session = Session(Settings(dataset=name, streams=streams, sampling=sampling, **roots), "test")
                assert not run(session, clips, pool).failures
    return world / "features"


@pytest.fixture(autouse=True)
def stand_ins(world, monkeypatch):
    monkeypatch.setenv("AFFECT_WEIGHTS", str(world / "weights.yaml"))


def train_with(file: Path, world: Path, folder: Path, *more: str) -> Path:
    options = [*SMALL, f"run.output_dir={folder / 'run'}", f"datasets.mercaptionplus.data_root={world / 'data'}", *more]
    train.main(["--cfg-path", str(file), "--options", *options])
    return folder / "run"


def answer_with(file: Path, world: Path, run_folder: Path, folder: Path, *more: str) -> list[dict]:
    """Answer the test clips of MER2023; the model is small as in training, the rest as the file says."""
    widths = [option for option in SMALL if option.startswith("model.")] if "model:" in file.read_text() else []
    own = {"ckpt_root": run_folder, "base_root": folder / "results", "data_root": world / "data", "max_new_tokens": 6}
    options = [*widths, *(f"inference.{key}={value}" for key, value in own.items()), *more]
    assert inference.main(["--cfg-path", str(file), "--dataset", "mer2023", "--options", *options]) == 0
    return records(answers_file(folder, "mer2023"))


def test_the_file_that_encodes_everything_on_the_fly(world, features, tmp_path, shared, caplog):
    caplog.set_level("INFO")
    file = shared / "goldens/user_configs/emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz.yaml"
    nowhere = tmp_path / "no_features"
    run_folder = train_with(file, world, tmp_path, f"datasets.mercaptionplus.preextracted_root={nowhere}")
    live = answer_with(file, world, run_folder, tmp_path / "live", f"inference.preextracted_root={nowhere}")
    assert not nowhere.exists()
    assert "emotion_peak without mer_factory_output: frames are uniform" in caplog.text
    assert live[0]["streams"] == ["multi", "audio", "face", "frame"]
    assert live[0]["subtitle"] == "m3 says"


def test_the_recommended_files_answer_from_raw_clips_as_from_stored_features(
    world, features, tmp_path, shared, monkeypatch, caplog
):
    caplog.set_level("INFO")
    users = shared / "goldens/user_configs"
    places = [f"{{}}.preextracted_root={features}", f"{{}}.mer_factory_output={world / 'au'}"]
    own = users / "recommended_train_with_preextracted_au.yaml"
    trained_in = [place.format("datasets.mercaptionplus") for place in places]
    run_folder = train_with(own, world, tmp_path, *trained_in)
    assert "skip_encoders is True, so its features are read from" in caplog.text

    answered_in = [place.format("inference") for place in places]
    stored = answer_with(own, world, run_folder, tmp_path / "stored", *answered_in)
    shipped = SHIPPED / "eval_configs/recommended_inference_with_clip_realtime.yaml"
    nowhere = f"inference.preextracted_root={tmp_path / 'no_features'}"
    live = answer_with(shipped, world, run_folder, tmp_path / "live", answered_in[1], nowhere)
    assert live == stored
    assert live[0]["streams"] == ["multi", "audio", "face", "frame", "au"]
    assert live[0]["action_units"]

    mixed_file = users / "inference_frame_preextracted_au_realtime.yaml"
    some = shutil.copytree(features, tmp_path / "some", ignore=shutil.ignore_patterns("au_*"))  # AU is made from JSON
    in_part = f"inference.preextracted_root={some}"
    mixed = answer_with(mixed_file, world, run_folder, tmp_path / "mixed", answered_in[1], in_part)
    assert mixed[0]["streams"] == stored[0]["streams"]


def test_the_file_of_action_units_in_words(world, features, tmp_path, shared):
    """It trains on stored features and answers from raw clips; each stream has a switch."""
    file, captions = shared / "goldens/user_configs/nonverbal_face_frame_au.yaml", tmp_path / "captions.json"
    told = {"MERCaptionPlus": {"a1": {"caption": "The brows rise."}}, "MER2023": {"m3": {"caption": "The lips part."}}}
    captions.write_text(json.dumps(told))
    places = [f"nonverbal_json={captions}", f"preextracted_root={features}"]
    run_folder = train_with(file, world, tmp_path, *(f"datasets.mercaptionplus.{place}" for place in places))
    places = [f"inference.{place}" for place in places]
    switches = [f"inference.use_preextracted_{stream}=true" for stream in ("frame", "face", "audio")]
    stored = answer_with(file, world, run_folder, tmp_path / "stored", *places, *switches)
    nowhere = f"inference.preextracted_root={tmp_path / 'no_features'}"
    live = answer_with(file, world, run_folder, tmp_path / "live", places[0], nowhere)
    assert live == stored
    assert (live[0]["streams"][-1], live[0]["nonverbal"]) == ("au", "The lips part.")


def test_the_file_of_an_evaluation_names_clips_and_labels_itself(world, features, tmp_path, shared):
    users, folder = shared / "goldens/user_configs", world / "data" / FOLDERS["mer2023"]
    own = [f"datasets.mercaptionplus.preextracted_root={features}", "model.au_fusion_type=attention"]
    run_folder = train_with(users / "recommended_train_with_preextracted_au.yaml", world, tmp_path, *own)
    labels = f"evaluation_datasets_cfg.mer2023.eval_file_path={folder / 'label-6way.npz'}"
    places = [labels, f"inference.mer_factory_output={world / 'au'}", f"inference.preextracted_root={features}"]
    file = users / "eval_mer2023_frame_preextract.yaml"
    (answer,) = answer_with(file, world, run_folder, tmp_path, "inference.data_root=elsewhere", *places)
    assert (answer["name"], answer["subtitle"], answer["labels"]) == ("m3", "m3 says", ["neutral"])
    assert answer["streams"] == ["multi", "audio", "face", "frame", "au"]


def test_the_agent_describes_before_it_is_answered(world, features, tmp_path, shared, tiny_llm):
    own = shared / "goldens/user_configs/recommended_train_with_preextracted_au.yaml"
    trained_in = [f"datasets.mercaptionplus.{key}" for key in ("preextracted_root", "mer_factory_output")]
    run_folder = train_with(own, world, tmp_path, f"{trained_in[0]}={features}", f"{trained_in[1]}={world / 'au'}")
    bare = analyse_openface(world / "data" / FOLDERS["mer2023"] / "openface/m3.csv")
    path = au_json_path(tmp_path / "au", "mer2023", "m3")
    write_au_json(bare, path)
    agent = {"au_agent_base_model": tiny_llm, "au_agent_lora_weights": '""', "au_agent_device": "cpu"}
    options = [*(f"model.{key}={value}" for key, value in agent.items()), "inference.use_au_clip_realtime=true"]
    places = [f"inference.preextracted_root={features}", f"inference.mer_factory_output={tmp_path / 'au'}"]
    (answer,) = answer_with(own, world, run_folder, tmp_path, *options, *places)
    analysis = read_au_json(path)
    assert len(analysis.summary_description) == 8
    assert str(tiny_llm) in analysis.provenance["sentences"]
    assert "au" in answer["streams"]
