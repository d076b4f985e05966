"""The AU agent before training or inference: which clips it describes, and what is left of it."""

from pathlib import Path

import pytest

from affect.cli import au_fill
from affect.cli.au_fill import fill_sentences, sentence_maker
from affect.core.au_json import au_json_path, read_au_json, write_au_json
from affect.core.schema import Modality
from affect.data.config import Config, ConfigError
from affect.features.store import FeatureStore
from extractors.au.openface import analyse_openface
from extractors.au.templates import describe_clips
from extractors.run.journal import RunReport
from toy_clips import write_table


@pytest.fixture
def world(tiny_world, tmp_path, tiny_llm) -> Config:
    """Twelve clips whose AU features are not there; c8 to c11 have AU JSON, of which c9 has sentences, c10 no face."""
    section = tiny_world.datasets["toy"]
    section.mer_factory_output, section.au_encoder = str(tmp_path / "au"), "HASHED_NGRAMS"
    tiny_world.model.preextracted_au_dim = 512
    for name in ("c8", "c9", "c10", "c11"):
        write_table(tmp_path / f"{name}.csv", success=int(name != "c10"))
        analysis = analyse_openface(tmp_path / f"{name}.csv")
        if name == "c9":
            (analysis,) = describe_clips([(analysis, [0, 1])])
        write_au_json(analysis, json_of(tiny_world, name))
    model = tiny_world.model
    model.use_au_agent, model.au_agent_base_model, model.au_agent_device = True, str(tiny_llm), "cpu"
    return tiny_world


def json_of(config: Config, name: str) -> Path:
    return au_json_path(config.datasets["toy"].mer_factory_output, "toy", name)


def sentences_of(config: Config) -> dict[str, int]:
    names = ("c8", "c9", "c10", "c11")
    return {name: len(read_au_json(json_of(config, name)).summary_description) for name in names}


def stored(config: Config) -> list[str]:
    section = config.datasets["toy"]
    store, spec = FeatureStore(Path(section.preextracted_root), "toy"), section.spec(Modality.AU, 512)
    return [name for name in ("c8", "c9", "c10", "c11") if store.has(spec, name)]


def test_the_agent_describes_what_has_no_sentence_and_makes_its_features(world, monkeypatch):
    assert fill_sentences(world, "test") == 2
    assert sentences_of(world) == {"c8": 8, "c9": 2, "c10": 0, "c11": 8}
    said = read_au_json(json_of(world, "c8")).provenance["sentences"]
    assert said == f"language model {world.model.au_agent_base_model}"
    assert stored(world) == ["c8", "c9", "c10", "c11"]
    monkeypatch.setattr(au_fill, "run", None)
    assert fill_sentences(world, "test") == 0  # what is there is not made again


@pytest.mark.parametrize("way", [{"use_preextracted_au": False}, {"use_nonverbal_text": True}])
def test_sentences_alone_are_made_where_nothing_is_stored_of_them(world, monkeypatch, way):
    ran = []
    monkeypatch.setattr(au_fill, "run", lambda session, names: ran.append((session.settings, names)) or RunReport(2))
    world.datasets["toy"] = world.datasets["toy"].over(way)
    assert fill_sentences(world, "test") == 2
    ((settings, names),) = ran
    assert (settings.stages, names) == (("au_text",), ["c8", "c11"])
    world.datasets["toy"] = world.datasets["toy"].over({"use_nonverbal_text": True, "nonverbal_json": "captions.json"})
    assert fill_sentences(world, "test") == 0  # nobody reads them


def test_a_run_that_was_stopped_goes_on_with_the_rest(world, tmp_path):
    for name in ("c8", "c11"):  # killed when all sentences were written, and no features yet
        (analysis,) = describe_clips([(read_au_json(json_of(world, name)), [0])])
        write_au_json(analysis, json_of(world, name))
    world.model.au_agent_base_model = str(tmp_path / "nowhere")  # is not needed for the rest
    assert fill_sentences(world, "test") == 0
    assert sentences_of(world) == {"c8": 1, "c9": 2, "c10": 0, "c11": 1}
    assert stored(world) == ["c8", "c9", "c10", "c11"]


def test_the_agent_is_not_loaded_where_it_has_nothing_to_do(world, tmp_path):
    world.model.au_agent_base_model = str(tmp_path / "nowhere")
    assert fill_sentences(world, "train") == 0  # none of those clips has AU JSON
    world.model.use_au_agent = False
    assert fill_sentences(world, "test") == 0
    world.model.use_au_agent = True
    world.datasets["toy"].face_or_frame = "audio_text"
    assert fill_sentences(world, "test") == 0


def test_what_the_agent_lacks_is_one_sentence(world, tmp_path):
    world.model.au_agent_device = "cuda:77"
    with pytest.raises(ValueError, match=r"model\.au_agent_device: cuda:77 does not exist"):
        fill_sentences(world, "test")
    world.model.au_agent_device, world.model.au_agent_base_model = "cpu", str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        fill_sentences(world, "test")
    world.datasets["toy"].mer_factory_output = None
    with pytest.raises(
        ConfigError, match=r"model\.use_au_agent: 4 clips .* expected datasets\.toy\.mer_factory_output"
    ):
        fill_sentences(world, "test")


def test_the_agent_may_describe_a_single_clip(world, tmp_path):
    analysis = read_au_json(json_of(world, "c8"))
    (described,) = sentence_maker(world.model)([(analysis, [0, 3])])
    assert list(described.summary_description) == ["1", "4"]
    assert described.provenance["sentences"].startswith("language model")
    world.model.use_au_agent = False
    assert sentence_maker(world.model) is describe_clips
