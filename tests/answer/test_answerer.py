"""Answers of a model: batches, devices, and features that cannot be those of the configuration."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from affect.answer import setup
from affect.answer.answerer import Answerer, check_features
from affect.answer.files import REASONING, answer_settings
from affect.answer.setup import check_layout, inference_device, load_model
from affect.core.layouts import LAYOUTS
from affect.core.schema import Modality
from affect.data.config import DatasetConfig, InferenceConfig
from affect.data.dataset import open_dataset
from affect.features.store import FeatureError, FeatureStore
from affect.models.affectgpt import build_affectgpt

WORDS = ["", "yes", "i see what you mean", "no " * 40, "what does this person feel", "the lip corners", "a", "so happy"]


@pytest.fixture
def answerer(tiny_world) -> Answerer:
    """A random model whose weights are large enough to heed what it is shown."""
    torch.manual_seed(1)
    layout = tiny_world.datasets["toy"].face_or_frame
    model = build_affectgpt(tiny_world.model, [LAYOUTS[layout]])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and ("lora" not in name or "lora_A" in name):
                torch.nn.init.normal_(weight, std=0.4)
    tiny_world.inference.max_new_tokens = 12
    return Answerer(model.eval(), tiny_world, layout, model.generate)


@pytest.fixture
def dataset(tiny_world):
    """Twelve clips with more or fewer words; c3 has no face and no action units, c4 no sound."""
    opened = open_dataset("toy", tiny_world.datasets["toy"], tiny_world.model, None)
    clips = [replace(clip, subtitle=WORDS[i % len(WORDS)]) for i, clip in enumerate(opened.clips)]
    return replace(opened, clips=clips)


def test_a_batch_of_eight_gives_the_answers_of_one_by_one(answerer, dataset, tiny_world):
    answers = {}
    for size in (1, 8):
        tiny_world.inference.batch_size = size
        answers[size] = list(answerer.answer_dataset(dataset))
    assert answers[8] == answers[1]
    assert len({answer.answer for answer in answers[1]}) > 8  # they heed their clips
    assert answers[8][3].missing == ["face", "au"]
    assert answers[8][4].missing == ["audio"]


def test_sampling_follows_the_seed_and_the_clips_alone(answerer, dataset, tiny_world):
    def texts(seed: int, first: int = 0) -> list[str]:
        tiny_world.inference.do_sample, tiny_world.inference.seed = True, seed
        sampling = Answerer(answerer.model, tiny_world, answerer.layout, answerer.writer)
        part = replace(dataset, clips=dataset.clips[first:])
        return [answer.answer for answer in sampling.answer_dataset(part)]

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)
    assert texts(0)[8:] == texts(0, 8)  # a run that goes on after its first batch


def test_what_answers_are_drawn_by_is_in_their_settings(answerer, dataset, tiny_world, tmp_path):
    def settings(do_sample: bool) -> dict:
        tiny_world.inference.do_sample = do_sample
        return answer_settings(tiny_world, dataset.config, tmp_path, answerer.prompts, REASONING)

    greedy, sampled = settings(False), settings(True)
    drawn_by = {"do_sample": True, "seed": 42, "top_p": 0.9, "temperature": 1.0}
    assert sampled == greedy | drawn_by and not drawn_by.keys() & greedy.keys() - {"do_sample"}


def test_greedy_is_greedy_whatever_the_language_model_s_folder_says(answerer, dataset, tiny_world, tiny_llm, tmp_path):
    greedy = list(answerer.answer_dataset(dataset))
    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0).save_pretrained(folder)
    tiny_world.model.llama_model = str(folder)
    same = build_affectgpt(tiny_world.model, [LAYOUTS[answerer.layout]]).eval()
    same.load_state_dict(answerer.model.state_dict())
    assert list(Answerer(same, tiny_world, answerer.layout, same.generate).answer_dataset(dataset)) == greedy


def test_every_batch_is_shown_before_it_is_answered(answerer, dataset):
    seen = []
    answerer.look = lambda batch: seen.append(list(batch.names))
    answered = [answer.name for answer in answerer.answer_dataset(dataset)]
    assert [len(names) for names in seen] == [8, 4]
    assert [name for names in seen for name in names] == answered


def test_a_stand_in_may_write_the_answers(answerer, dataset):
    answerer.writer = lambda batch, decoding: [f"{name} {decoding.max_new_tokens}" for name in batch.names]
    assert next(answerer.answer_dataset(dataset)).answer == "c0 12"


def write(dataset, stream: Modality, names: list[str], width: int, provenance: dict | None = None) -> None:
    spec = replace(dataset.specs[stream], dim=width)
    folder = dataset.store.root / spec.folder
    for name in names:
        (folder / f"{name}.npy").unlink()
    if len(names) == len(dataset):
        (folder / "provenance.json").unlink()
    store = FeatureStore(dataset.store.root, "toy")
    for name in names:
        store.write(spec, name, np.ones((8, width), np.float32), provenance or {})


def names_of(dataset) -> list[str]:
    return [clip.name for clip in dataset.clips]


def test_features_of_another_width_are_refused_before_the_first_batch(dataset):
    write(dataset, Modality.AUDIO, names_of(dataset), 11)
    with pytest.raises(FeatureError, match="dim is 11, but the run expects 10"):
        check_features(dataset)


def test_features_of_another_sampling_are_refused_before_the_first_batch(dataset):
    folder = dataset.store.root / dataset.specs[Modality.FRAME].folder
    sidecar = folder / "provenance.json"
    sidecar.write_text(sidecar.read_text().replace("uniform", "emotion_peak"))
    with pytest.raises(FeatureError, match="sampling is 'emotion_peak', but the run expects 'uniform'"):
        check_features(replace(dataset, store=FeatureStore(dataset.store.root, "toy")))


def test_a_stream_that_no_clip_has_is_refused_and_one_that_some_lack_is_not(dataset, answerer, caplog):
    folder = dataset.store.root / dataset.specs[Modality.FACE].folder
    for name in ("c0", "c7"):
        (folder / f"{name}.npy").unlink()
    np.save(folder / "c1.npy", np.full((8, 12), np.nan, np.float32))
    check_features(dataset)
    answered = [answer.name for answer in answerer.answer_dataset(dataset)]
    assert answered == [name for name in names_of(dataset) if name not in ("c0", "c1", "c7")]
    assert [(each.name, each.stage) for each in answerer.failures] == [(name, "answer") for name in ("c0", "c1", "c7")]
    assert not caplog.messages  # the command tells its failures at the end
    for path in folder.glob("*.npy"):
        path.unlink()
    with pytest.raises(FeatureError, match=r"clip 'c0' has no face features: .*; 11 more clips"):
        check_features(dataset)


def test_a_layout_that_a_model_does_not_know_is_refused(tiny_world):
    tiny_world.datasets["toy"].face_or_frame = "audio_text"
    check_layout(tiny_world, Path("c"), DatasetConfig(face_or_frame="textonly"))
    with pytest.raises(ValueError, match=r"trained on \(audio_text\), found face_text"):
        check_layout(tiny_world, Path("c"), DatasetConfig(face_or_frame="face_text"))


def test_a_model_that_knows_action_units_in_words_is_not_shown_their_features(tiny_world, caplog):
    section = tiny_world.datasets["toy"]
    tiny_world.datasets["toy"] = in_words = section.over({"use_nonverbal_text": True})
    check_layout(tiny_world, Path("c"), in_words)
    with pytest.raises(ValueError, match=r"trained on \(\w+_au_text with use_nonverbal_text\), found \w+_au_text$"):
        check_layout(tiny_world, Path("c"), section)
    assert not caplog.text
    tiny_world.datasets["toy"] = section
    check_layout(tiny_world, Path("c"), in_words)
    assert "was never shown action units as text" in caplog.text


def test_four_bits_without_a_gpu_to_answer_on_are_refused(tiny_world, tmp_path):
    tiny_world.model.load_in_4bit, tiny_world.inference.device = True, "cpu"
    with pytest.raises(ValueError, match=r"load_in_4bit: expected .* on a GPU, found backend hf on cpu"):
        load_model(tiny_world, tmp_path)


@pytest.mark.parametrize("emulated", [True, False])
def test_bfloat16_that_a_card_emulates_is_left_alone(tiny_world, tmp_path, monkeypatch, emulated):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated
    )
    monkeypatch.setattr(setup, "build_affectgpt", lambda config, layouts, dtype: asked.append(dtype) or 1 / 0)
    tiny_world.inference.backend = "vllm"  # the model itself stays on the CPU
    with pytest.raises(ZeroDivisionError):
        load_model(tiny_world, tmp_path)
    assert asked == [torch.float32 if emulated else torch.bfloat16]


def test_a_gpu_index_counts_where_there_are_gpus(monkeypatch, caplog):
    caplog.set_level("INFO")
    assert inference_device(InferenceConfig(gpu=0, device="cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert inference_device(InferenceConfig(gpu=3)) == torch.device("cpu")
    assert "no GPU: answering on the CPU" in caplog.text
    with pytest.raises(ValueError, match=r"inference\.device: cuda:3 does not exist"):
        inference_device(InferenceConfig(device="cuda:3"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert inference_device(InferenceConfig(gpu=1)) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"inference\.gpu: cuda:3 does not exist, this machine has cuda:0 to cuda:1"):
        inference_device(InferenceConfig(gpu=3))
    assert inference_device(InferenceConfig(gpu=1, backend="vllm")) == torch.device("cpu")
