"""Features made when a clip is asked for: those that the store would have, for every stream."""

import pickle
import shutil

import numpy as np
import pytest

from affect.cli.live import extraction_settings, live_stores, loader_settings, open_store
from affect.core.au_json import AuAnalysis, au_json_path, write_au_json
from affect.core.schema import Modality
from affect.data.config import Config, ConfigError, DatasetConfig, ModelConfig
from affect.features.store import FeatureError, FeatureStore
from extractors.encoders import build_encoder
from extractors.run import live
from extractors.run.driver import run
from extractors.run.live import LiveFeatures
from extractors.run.session import Session
from extractors.run.workers import ClipWorkers
from tiny_encoders import save
from toy_clips import write_clips

STREAMS = (Modality.FRAME, Modality.FACE, Modality.AUDIO, Modality.AU)
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Clips a, b and c with videos, sound, face arrays and AU JSON; no face is seen in c, and b has no sound file."""
    root = tmp_path_factory.mktemp("raw")
    folders = write_clips(root, NAMES, faceless="c")
    rng = np.random.default_rng(0)
    (root / "face").mkdir()
    for name in NAMES:
        faces = rng.integers(0, 256, (0 if name == "c" else 9, 112, 112, 3), dtype=np.uint8)
        np.save(root / "face" / f"{name}.npy", faces)
    (folders["audio"] / "b.wav").unlink()
    return root


@pytest.fixture(scope="module")
def pool():
    with ClipWorkers(count=1, time_limit=60) as workers:
        yield workers


@pytest.fixture(scope="module", params=["embedded", "pretrained"])
def encoders(request, tmp_path_factory):
    """Names of the encoders: those that need no weights, or tiny ones in the formats of published checkpoints."""
    if request.param == "embedded":
        return {"visual_encoder": "DCT", "acoustic_encoder": "PROSODY", "au_encoder": "HASHED_NGRAMS"}
    folder = tmp_path_factory.mktemp("encoders")
    kinds = {"visual_encoder": "clip", "acoustic_encoder": "hubert", "au_encoder": "clip_text"}
    return {key: f"hf:{save(kind, folder)}" for key, kind in kinds.items()}


def settings(tmp_path, raw, encoders, **more) -> tuple[DatasetConfig, ModelConfig]:
    dims = [
        build_encoder(stream, encoders[key]).dim
        for stream, key in zip(STREAMS[1:], ("visual_encoder", "acoustic_encoder", "au_encoder"), strict=True)
    ]
    section = DatasetConfig(
        **{
            **encoders,
            "preextracted_root": str(tmp_path / "features"),
            "mer_factory_output": str(raw / "au"),
            "use_preextracted_features": False,
            **{f"{kind}_root": str(raw / kind) for kind in ("video", "audio", "face")},
            **more,
        }
    )
    visual, acoustic, au = dims
    widths = {"preextracted_visual_dim": visual, "preextracted_acoustic_dim": acoustic, "preextracted_au_dim": au}
    return section, ModelConfig(skip_encoders=False, **widths)


def extract(section, model, raw, pool) -> FeatureStore:
    """Make stored features as the extraction script does."""
    roots = {f"{kind}_root": raw / kind for kind in ("video", "audio", "face", "openface", "au")}
    session = Session(extraction_settings("toy", section, **roots), "0of1")
    report = run(session, NAMES, pool)
    assert {(failure.name, failure.stage) for failure in report.failures} <= {("b", "audio")}
    return session.store


@pytest.mark.parametrize("sampling", ["uniform", "emotion_peak"])
def test_features_made_on_the_fly_are_those_that_the_store_has(tmp_path, raw, pool, encoders, sampling):
    section, model = settings(
        tmp_path, raw, encoders, frame_sampling=sampling, frame_n_frms=5, use_preextracted_au=False
    )
    stored = extract(section, model, raw, pool)
    features = open_store("toy", section, model)
    assert set(features.specs) == set(STREAMS)
    for name in NAMES:
        for spec in features.specs.values():
            expected = stored.read(spec, name)
            found = features.read(spec, name)
            assert found.dtype == np.float32
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(features.read(features.specs[Modality.FACE], "c")) == 0
    assert len(features.read(features.specs[Modality.AUDIO], "b")) == 0
    assert len(features.read(features.specs[Modality.FRAME], "a")) == 5


def embedded() -> dict[str, str]:
    return {"visual_encoder": "DCT", "acoustic_encoder": "PROSODY", "au_encoder": "HASHED_NGRAMS"}


@pytest.fixture
def opened(tmp_path, raw) -> LiveFeatures:
    section, model = settings(tmp_path, raw, embedded(), mer_factory_output=None)
    return open_store("toy", section, model)


def test_a_clip_is_decoded_once_for_all_its_streams(opened, monkeypatch):
    asked = []
    true = live.prepare_clip
    monkeypatch.setattr(live, "prepare_clip", lambda task: asked.append(task.name) or true(task))
    for name in ["a", "b", "a"]:
        for spec in opened.specs.values():
            opened.read(spec, name)
    assert asked == ["a", "b"]


def test_the_reader_may_do_what_it_likes_with_an_array(opened):
    spec = opened.specs[Modality.FRAME]
    opened.read(spec, "a")[:] = 0
    assert opened.read(spec, "a").any()


def test_other_streams_come_from_the_store(tmp_path, raw, opened):
    section, model = settings(tmp_path, raw, embedded())
    spec = section.spec(Modality.AU, model.preextracted_au_dim)
    rows = np.eye(3, spec.dim, dtype=np.float32)
    opened.store.write(spec, "a", rows, {})
    assert Modality.AU not in opened.specs
    assert np.array_equal(opened.read(spec, "a"), rows)
    assert opened.missing(spec, NAMES) == ["b", "c"]
    assert opened.root == tmp_path / "features" / "toy"


def test_workers_decode_ahead_in_the_order_of_the_reader(opened, pool):
    alone = {name: {s: opened.read(spec, name) for s, spec in opened.specs.items()} for name in NAMES}
    opened._read.clear()
    with opened.ahead([*NAMES, "absent"], pool):
        for name in NAMES:
            for stream, spec in opened.specs.items():
                assert np.array_equal(opened.read(spec, name), alone[name][stream])
        with pytest.raises(FeatureError, match="clip 'absent' has no video"):
            opened.read(opened.specs[Modality.FRAME], "absent")


def test_what_came_before_its_turn_is_kept_until_it_is_read(opened, pool, monkeypatch):
    monkeypatch.setattr(live, "CLIPS_KEPT", 1)
    monkeypatch.setattr(live, "prepare_clip", None)  # nothing is decoded here
    spec = opened.specs[Modality.FRAME]
    with opened.ahead(NAMES, pool):
        for name in ["c", "b", "a"]:
            assert len(opened.read(spec, name)) == 8


def test_a_broken_clip_costs_the_streams_that_need_it_and_no_other_clip(tmp_path, raw, pool):
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw/video/a.mp4").write_text("this is no video")
    section, model = settings(tmp_path, tmp_path / "raw", embedded(), mer_factory_output=None)
    features = open_store("toy", section, model)
    with features.ahead(NAMES, pool):
        with pytest.raises(FeatureError, match=r"clip 'a' has no frame features: .*a\.mp4"):
            features.read(features.specs[Modality.FRAME], "a")
        assert len(features.read(features.specs[Modality.AUDIO], "a")) == 8
        assert len(features.read(features.specs[Modality.FRAME], "b")) == 8


def test_clips_without_raw_material_are_missing(opened, raw):
    names = [*NAMES, "absent"]
    assert {stream: opened.missing(spec, names) for stream, spec in opened.specs.items()} == {
        stream: ["absent"] for stream in opened.specs
    }


def test_peaks_come_from_the_au_json(tmp_path, raw):
    write_au_json(
        AuAnalysis(au_info={"total_frames": 12, "peak_frames": [{"peak_index": 10}]}),
        au_json_path(tmp_path / "au", "toy", "a"),
    )
    peaks = {"frame_sampling": "emotion_peak", "frame_n_frms": 1}
    section, model = settings(tmp_path, raw, embedded(), mer_factory_output=str(tmp_path / "au"), **peaks)
    at_peak = open_store("toy", section, model)
    section, model = settings(tmp_path, raw, embedded(), mer_factory_output=None, **peaks)
    without = open_store("toy", section, model)
    uniform = settings(tmp_path, raw, embedded(), frame_n_frms=12)
    every = open_store("toy", *uniform)
    spec = at_peak.specs[Modality.FRAME]
    frames = every.read(every.specs[Modality.FRAME], "a")
    np.testing.assert_allclose(at_peak.read(spec, "a"), frames[10:11], atol=1e-5)
    np.testing.assert_allclose(without.read(spec, "a"), frames[:1], atol=1e-5)
    with pytest.raises(FeatureError, match="peak is not known"):
        at_peak.read(spec, "b")


def test_sentences_that_are_missing_are_one_sentence(tmp_path, raw):
    write_au_json(AuAnalysis(), au_json_path(tmp_path / "au", "toy", "a"))
    au = {"mer_factory_output": str(tmp_path / "au"), "use_preextracted_au": False}
    section, model = settings(tmp_path, raw, embedded(), **au)
    features = open_store("toy", section, model)
    spec = features.specs[Modality.AU]
    assert features.missing(spec, NAMES) == ["b", "c"]
    with pytest.raises(FeatureError, match="expected sentences in summary_description"):
        features.read(spec, "a")
    with pytest.raises(FeatureError, match="clip 'b' has no AU JSON"):
        features.read(spec, "b")


def test_the_store_counts_where_encoders_are_skipped_or_features_are_there(tmp_path, raw, caplog):
    caplog.set_level("INFO")
    section, model = settings(tmp_path, raw, embedded())
    model.skip_encoders = True
    assert isinstance(open_store("toy", section, model), FeatureStore)
    assert "skip_encoders is True, so its features are read from" in caplog.text
    caplog.clear()
    section.use_preextracted_features, model.skip_encoders = True, False
    assert isinstance(open_store("toy", section, model), FeatureStore)
    assert "skip_encoders" not in caplog.text


@pytest.mark.parametrize("stream", STREAMS)
def test_each_stream_is_stored_or_encoded_by_itself(tmp_path, raw, stream):
    own = {"use_preextracted_features": True, f"use_preextracted_{stream}": False}
    section, model = settings(tmp_path, raw, embedded(), **own)
    model.skip_encoders = True  # is about use_preextracted_features alone
    setattr(section, f"use_preextracted_{stream}", False)
    assert set(open_store("toy", section, model).specs) == {stream}
    model.skip_encoders = section.use_preextracted_features = False
    setattr(section, f"use_preextracted_{stream}", True)
    assert set(open_store("toy", section, model).specs) == {*STREAMS} - {Modality.AU, stream}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mer_factory_output": None}, "use_au_clip_realtime .*: expected mer_factory_output"),
        ({"video_root": None}, "expected video_root, a folder to encode frame from, found nothing"),
        ({"audio_root": "nowhere", "video_root": "nowhere"}, "found nowhere"),
        ({"frame_n_frms": 8, "visual_encoder": "HASHED"}, "HASHED"),
    ],
)
def test_what_cannot_be_encoded_is_said_before_the_first_clip(tmp_path, raw, change, message):
    section, model = settings(tmp_path, raw, embedded())
    with pytest.raises(ValueError, match=message):
        open_store("toy", section.model_copy(update={"use_preextracted_au": False, **change}), model)


def test_an_encoder_of_another_width_is_named(tmp_path, raw):
    section, model = settings(tmp_path, raw, embedded())
    model.preextracted_acoustic_dim = 7
    with pytest.raises(ConfigError, match=r"encoder PROSODY gives .* the model expects 7 of audio"):
        open_store("toy", section, model)


def test_loader_processes_can_have_it(opened, pool):
    spec = opened.specs[Modality.FRAME]
    with opened.ahead(NAMES, pool):
        copy = pickle.loads(pickle.dumps(opened))
        assert np.array_equal(copy.read(spec, "a"), opened.read(spec, "a"))


def test_training_on_a_gpu_reads_in_its_own_process(tmp_path, raw, caplog):
    caplog.set_level("INFO")
    section, model = settings(tmp_path, raw, embedded())
    stored = section.model_copy(update={"use_preextracted_features": True})
    config = Config(model=model, datasets={"toy": section, "other": stored})
    stores = live_stores(config, "cpu")
    assert list(stores) == ["toy"]
    assert loader_settings(config, stores.values(), "cpu") is config
    assert loader_settings(config, [], "cuda:0") is config
    assert loader_settings(config, stores.values(), "cuda:0").run.num_workers == 0
    assert config.run.num_workers == 4  # the caller's own
    assert "run.num_workers counts as 0" in caplog.text


def test_reading_writes_nothing(tmp_path, opened):
    opened.read(opened.specs[Modality.FRAME], "a")
    assert not (tmp_path / "features").exists()


def test_a_clip_that_an_encoder_cannot_take_costs_no_other_clip(opened, pool, monkeypatch):
    true = live.shared_encoder

    class Picky:
        """Takes no clip whose pictures are those of b, and makes NaN of those of c."""

        def __init__(self, *how):
            self.encoder = true(*how)
            self.dim, self.prepare = self.encoder.dim, self.encoder.prepare

        def __call__(self, items):
            arrays = self.encoder(items)
            for array in arrays:
                if np.allclose(array, refused):
                    raise RuntimeError("too large a clip")
                if np.allclose(array, spoiled):
                    array[:] = np.nan
            return arrays

    spec = opened.specs[Modality.FRAME]
    whole, refused, spoiled = (opened.read(spec, name) for name in NAMES)
    opened._read.clear()
    picky = LiveFeatures(opened.session.settings)
    picky.session = Session(opened.session.settings, build=Picky)
    with picky.ahead(NAMES, pool):
        assert np.array_equal(picky.read(spec, "a"), whole)
        with pytest.raises(FeatureError, match="clip 'b' has no frame features: too large a clip"):
            picky.read(spec, "b")
        with pytest.raises(FeatureError, match="frame features of clip 'c': expected finite numbers"):
            picky.read(spec, "c")
