import pytest
import torch

from affect.data.collate import Collator
from affect.data.dataset import TrainingSamples, open_datasets, query_tokens
from affect.data.prompts import load_prompts
from affect.data.sampling import Draw
from affect.layouts import LAYOUTS
from affect.models.affectgpt import Decoding, build_affectgpt
from affect.schema import Modality

FULL = LAYOUTS["multiface_audio_face_frame_au_text"]


@pytest.fixture
def model(tiny_world):
    torch.manual_seed(0)
    model = build_affectgpt(tiny_world.model, [FULL]).eval()
    for weight in model.trainable().values():
        weight.data *= 10  # fresh weights are so small that what they read hardly shows
    return model


def batch(config, model, indices, generation=False):
    config.datasets["toy"].modality_dropout = 0.0
    data = TrainingSamples(open_datasets(config, "train"), load_prompts(), query_tokens(config.model), 0)
    return Collator(model.tokenizer, 500, generation)([data[Draw(i, 0)] for i in indices])


def test_loss_matches_the_library_on_spliced_embeddings(tiny_world, model):
    b = batch(tiny_world, model, [0, 3, 4])
    with torch.no_grad():
        whole = model.llm(inputs_embeds=model.embed(b), attention_mask=b.attention_mask, labels=b.labels)
        torch.testing.assert_close(model(b), whole.loss, atol=1e-5, rtol=1e-5)


def test_a_batch_answers_as_single_clips_do(tiny_world, model):
    decoding = Decoding(max_new_tokens=6)
    together = model.generate(batch(tiny_world, model, [0, 3, 4], generation=True), decoding)
    alone = [model.generate(batch(tiny_world, model, [i], generation=True), decoding)[0] for i in (0, 3, 4)]
    assert together == alone


def test_every_stream_moves_the_loss(tiny_world, model):
    b = batch(tiny_world, model, [0, 1])
    before = model(b).item()
    for stream in (Modality.FRAME, Modality.FACE, Modality.AUDIO, Modality.AU):
        changed = batch(tiny_world, model, [0, 1])
        changed.features[stream] += 1
        assert model(changed).item() != before, stream


def test_gradients_reach_every_trainable_weight(tiny_world, model):
    model.train()
    model(batch(tiny_world, model, [0, 1, 2])).backward()
    without = [name for name, weight in model.trainable().items() if weight.grad is None]
    assert not without
    assert not any(weight.requires_grad for name, weight in model.llm.named_parameters() if "lora_" not in name)


def test_frozen_parts_do_not_train(tiny_world):
    tiny_world.model.frozen_multi_Qformer = True
    tiny_world.model.frozen_audio_proj = True
    tiny_world.model.frozen_llm = True
    trainable = build_affectgpt(tiny_world.model, [FULL]).trainable()
    assert not any(name.startswith(("llm.", "fusion.qformer", "branches.audio.proj")) for name in trainable)
    assert any(name.startswith("fusion.proj") for name in trainable)
    assert any(name.startswith("branches.audio.qformer") for name in trainable)


def test_attention_maps_can_be_asked_for(tiny_world, model):
    maps = model.attention_maps(batch(tiny_world, model, [0, 3]))
    assert set(maps) == {"video", "audio", "au"}
    assert maps["video"][:, 1].max() < 1e-6  # c3 has no face
    tiny_world.model.multi_fusion_type = "attention"
    plain = build_affectgpt(tiny_world.model, [FULL])
    with pytest.raises(ValueError, match="has no attention maps"):
        plain.attention_maps(batch(tiny_world, plain, [0]))


def test_a_language_model_that_is_not_there_is_named(tiny_world):
    tiny_world.model.llama_model = "/no/such/folder"
    with pytest.raises(ValueError, match=r"language model '/no/such/folder'.*AFFECT_WEIGHTS"):
        build_affectgpt(tiny_world.model, [FULL])


def test_layouts_that_fuse_different_streams_do_not_share_a_model(tiny_world):
    with pytest.raises(ValueError, match="fuse the same streams"):
        build_affectgpt(tiny_world.model, [FULL, LAYOUTS["multiframe_audio_frame_text"]])
