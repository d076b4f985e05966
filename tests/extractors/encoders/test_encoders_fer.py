"""The encoder of expression networks: the vector before the classifier, on the fly and in the store alike."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from affect.cli import extract as extract_features
from affect.cli.live import live_stores
from affect.core.schema import Modality
from affect.data.config import parse_config
from affect.data.dataset import open_datasets
from affect.expressions.config import ImageModelConfig, input_spec
from affect.expressions.image_files import to_input
from affect.expressions.models import build_model, load_model
from affect.expressions.network_file import ModelCard, find_model, read_card, save_model
from affect.features.store import FeatureError, FeatureSpec, FeatureStore
from extractors.encoders import build_encoder
from extractors.encoders.pretrained import WeightsError
from tiny_encoders import check_batch_equals_single, encode, frames

SETTINGS = {
    "compact": {"width": 0.25},
    "timm": {"backbone": "resnet18", "img_size": 32},
    "ir50_vit": {"width": 0.125, "img_size": 32, "depth": 2},
    "poster_v2": {"width": 0.125, "img_size": 64},
}
ITEMS = [frames(5), frames(0), frames(1, 90, 40, seed=1), frames(3, 3, 3, seed=2)]
CLASSES = ("angry", "happy", "neutral")


def save_network(folder: Path, arch: str, seed: int = 0) -> Path:
    """Write a run's folder with a tiny random network, away from initial zeros and ones, which hide mistakes."""
    torch.manual_seed(seed)
    config = ImageModelConfig(arch=arch, **SETTINGS[arch])
    weights = build_model(config, len(CLASSES)).state_dict()
    weights = {k: v + 0.1 * (torch.rand_like(v) - 0.5) if v.is_floating_point() else v for k, v in weights.items()}
    save_model(folder / "best.safetensors", weights, ModelCard(config, CLASSES, input_spec(config, None, None)))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return {arch: save_network(place / arch, arch) for arch in SETTINGS}


@pytest.mark.parametrize("arch", SETTINGS)
def test_a_batch_gives_what_its_items_give_one_by_one(runs, arch):
    check_batch_equals_single(build_encoder("face", f"fer:{runs[arch]}"), ITEMS)


@pytest.mark.parametrize("arch", SETTINGS)
def test_rows_are_what_the_classifier_of_the_network_reads(runs, arch):
    model, card = load_model(runs[arch])
    encoder = build_encoder("frame", f"fer:{runs[arch] / 'best.safetensors'}")
    (found,) = encode(encoder, ITEMS[:1])
    images = torch.stack([to_input(frame, card.input) for frame in ITEMS[0]])
    with torch.inference_mode():
        assert torch.allclose(model.classify(torch.from_numpy(found)), model(images), atol=1e-5)
    assert encoder.dim == model.feature_dim == found.shape[1]


def test_what_workers_do_can_be_pickled_and_is_torch_free_to_take_along(runs):
    prepare = build_encoder("face", f"fer:{runs['compact']}").prepare
    pixels = prepare(ITEMS[0])
    assert (pixels.dtype, pixels.shape) == (np.float32, (5, 1, 48, 48))
    assert np.array_equal(pickle.loads(pickle.dumps(prepare))(ITEMS[0]), pixels)
    code = (
        "import pickle, sys; pickle.loads(sys.stdin.buffer.read()); "
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, input=pickle.dumps(prepare))
    assert done.returncode == 0


def test_provenance_says_which_network_sees_what(runs):
    found = build_encoder("face", f"fer:{runs['compact']}").provenance()
    assert (found["family"], found["model"], found["precision"]) == ("fer", "compact", "float32")
    assert found["layer"] == "before the classifier"
    assert found["classes"] == list(CLASSES)
    assert found["preprocessing"] == "gray, antialiased bilinear to 48 x 48, mean (0.5077), std (0.255)"
    assert {"torch", "timm", "affect"} <= found["versions"].keys()


def test_a_run_and_its_best_file_are_the_same_weights_and_other_weights_are_not(runs, tmp_path):
    names = [runs["compact"], runs["compact"] / "best.safetensors", save_network(tmp_path / "b", "compact", seed=1)]
    hashes = [build_encoder("face", f"fer:{name}").provenance()["weights"] for name in names]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0]


def test_networks_of_two_runs_are_never_mixed_in_one_folder(runs, tmp_path):
    names = [runs["compact"], save_network(tmp_path / "compact", "compact", seed=1)]
    encoders = [build_encoder("face", f"fer:{name}") for name in names]
    store = FeatureStore(tmp_path, "demo")
    specs = [FeatureSpec(Modality.FACE, encoder.name, encoder.dim) for encoder in encoders]
    assert specs[0].folder == specs[1].folder  # the same last part of the path
    store.write(specs[0], "a", encode(encoders[0], ITEMS[:1])[0], encoders[0].provenance())
    with pytest.raises(FeatureError, match="weights is"):
        store.write(specs[1], "b", encode(encoders[1], ITEMS[:1])[0], encoders[1].provenance())


def test_the_convolutions_run_in_the_precision_asked_for(runs):
    (expected,) = encode(build_encoder("face", f"fer:{runs['compact']}"), ITEMS[:1])
    encoder = build_encoder("face", f"fer:{runs['compact']}", precision="bfloat16")
    (found,) = encode(encoder, ITEMS[:1])
    assert encoder.provenance()["precision"] == "bfloat16"
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def truncated(runs, place: Path) -> Path:
    content = (runs["compact"] / "best.safetensors").read_bytes()
    (place / "cut.safetensors").write_bytes(content[: len(content) // 2])
    return place / "cut.safetensors"


def foreign(runs, place: Path) -> Path:

    save_file({"weight": torch.zeros(2)}, place / "foreign.safetensors")
    return place / "foreign.safetensors"


def broken(runs, place: Path) -> Path:
    whole = load_file(find_model(runs["compact"]))
    weights = {k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in whole.items()}
    save_model(place / "nan.safetensors", weights, read_card(runs["compact"]))
    return place / "nan.safetensors"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda runs, place: place / "nowhere.safetensors", "found no file"),
        (lambda runs, place: place, "expected a run of the image track"),
        (truncated, "it may be cut off"),
        (foreign, "expected a network of train.py's image track"),
        (broken, "cannot be used"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_sentence(runs, tmp_path, make, message):
    with pytest.raises(WeightsError, match=message) as error:
        build_encoder("face", f"fer:{make(runs, tmp_path)}")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("encoder fer:")


@pytest.mark.parametrize("modality", ["audio", "au"])
def test_sound_and_sentences_have_no_expression_networks(runs, modality):
    with pytest.raises(ValueError, match="found the prefix 'fer'"):
        build_encoder(modality, f"fer:{runs['compact']}")


@pytest.fixture(scope="module")
def extracted(runs, shared, tmp_path_factory):
    """Features of two real clips, one without a face, as the script makes them."""
    root = tmp_path_factory.mktemp("extracted")
    (root / "video").mkdir()
    for clip in ("grid_bbaf2n.mpg", "pyfeat_no_face.mp4"):
        (root / "video" / clip).symlink_to(shared / "data" / "video" / clip)
    places = ["--video_root", str(root / "video"), "--save_root", str(root), "--num_workers", "1", "--no-progress"]
    encoder = ["--stages", "features", "--visual_encoder", f"fer:{runs['compact']}"]
    for modality in ("frame", "face"):
        assert extract_features.main(["--dataset", "real", "--modality", modality, *places, *encoder]) == 0
    (root / "clips.csv").write_text("name,openset\ngrid_bbaf2n,['happy']\npyfeat_no_face,['sad']\n")
    return root


@pytest.mark.parametrize(("modality", "counts"), [(Modality.FACE, (8, 0)), (Modality.FRAME, (8, 8))])
def test_training_reads_features_of_real_clips_back_as_they_are_on_the_fly(extracted, runs, modality, counts):
    name = f"fer:{runs['compact']}"
    section = {
        "csv_path": str(extracted / "clips.csv"),
        "video_root": str(extracted / "video"),
        "preextracted_root": str(extracted),
        "visual_encoder": name,
        "face_or_frame": f"{modality}only",
    }
    dim = build_encoder(modality, name).dim
    config = parse_config(
        {"model": {"preextracted_visual_dim": dim, "skip_encoders": False}, "datasets": {"real": section}}, "test"
    )
    (dataset,) = open_datasets(config, "train")
    dataset.check_arrays()
    config.datasets["real"].use_preextracted_features = False
    (live,) = live_stores(config, "cpu").values()
    spec = config.datasets["real"].spec(modality, dim)
    assert (extracted / "real" / f"{modality}_fer-compact_8frms").is_dir()
    for clip, count in zip(("grid_bbaf2n", "pyfeat_no_face"), counts, strict=True):
        stored = dataset.store.read(spec, clip)
        assert stored.shape == (count, dim)
        np.testing.assert_allclose(live.read(spec, clip), stored, atol=1e-5)
