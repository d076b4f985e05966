import dataclasses
import traceback

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from affect.core.layouts import LAYOUTS
from affect.core.schema import Clip, Modality
from affect.data.collate import Collator
from affect.data.config import InferenceConfig
from affect.data.dataset import TrainingSamples, make_sample, open_datasets, query_tokens
from affect.data.prompts import load_prompts
from affect.data.sampling import Draw
from affect.models.affectgpt import build_affectgpt, splice

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
    decoding = InferenceConfig(max_new_tokens=6)
    together = model.generate(batch(tiny_world, model, [0, 3, 4], generation=True), decoding)
    alone = [model.generate(batch(tiny_world, model, [i], generation=True), decoding)[0] for i in (0, 3, 4)]
    assert together == alone


class Waits(TorchDispatchMode):
    """Notes the operations that make a processor wait for its device, and the files that ask for them.

    They read a number back (item, bool, tolist), or make a tensor of a size that only the device knows.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket.__name__
        indices = args[1] if packet in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if by_mask or any(packet.strip("_").startswith(name.strip("_")) for name in self.NAMES):
            frames = [frame.filename for frame in traceback.extract_stack()]
            self.files.append(next((f for f in reversed(frames) if "/torch/" not in f and f != __file__), "backward"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fusion", ["qformer", "attention", "mean"])
def test_a_step_asks_the_device_nothing(tiny_world, fusion):
    """Only the language model's library asks: whether a batch has padding, to choose its attention."""
    for kind in ("video", "audio", "au"):
        setattr(tiny_world.model, f"{kind}_fusion_type", fusion)
    tiny_world.model.multi_fusion_type = "qformer" if fusion == "qformer" else "attention"
    tiny_world.model.image_fusion_type = "token"
    model = build_affectgpt(tiny_world.model, [FULL, LAYOUTS["image"]]).train()
    b = batch(tiny_world, model, [0, 3, 4])
    picture = {Modality.IMAGE: np.ones((1, tiny_world.model.preextracted_visual_dim), np.float32)}
    tokens = query_tokens(tiny_world.model)
    sample = make_sample(Clip("p", "toy"), picture, "image", load_prompts(), "ovlabel", tokens, "happy")
    pictures = Collator(model.tokenizer, 500)([sample, sample])
    with Waits() as waits:
        for each in (b, pictures):
            model(each).backward()
    assert [file for file in waits.files if "masking_utils" not in file] == []
    assert 0 < len(waits.files) <= 4
    with Waits() as waits:  # as it used to be done
        b.features[Modality.FACE][b.attention_mask.sum(dim=1) > 0]
        (b.input_ids == 0).any().item()
    assert len(waits.files) == 2


def test_what_is_whole_is_read_without_a_mask_and_gives_the_same_numbers(tiny_world, model):
    given = []
    note = lambda module, args, options: given.append(options["encoder_attention_mask"])  # noqa: E731
    model.fusion.qformer.bert.register_forward_pre_hook(note, with_kwargs=True)
    whole, padded = batch(tiny_world, model, [0, 1]), batch(tiny_world, model, [0, 3])  # c3 has no face
    masked = dataclasses.replace(whole, lengths={stream: [0, 0] for stream in whole.lengths})  # as if some lacked rows
    with torch.no_grad():
        without, under_masks, _ = (model.tokens(each) for each in (whole, masked, padded))
    assert [mask is None for mask in given] == [True, False, False]
    assert without.keys() == under_masks.keys()
    assert all(torch.equal(without[stream], under_masks[stream]) for stream in without)


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


def test_a_pre_fusion_without_queries_has_no_attention_maps(tiny_world):
    tiny_world.model.multi_fusion_type = "attention"
    plain = build_affectgpt(tiny_world.model, [FULL])
    with pytest.raises(ValueError, match="has no attention maps"):
        plain.attention_of_clips(batch(tiny_world, plain, [0]))


def test_attention_of_each_clip_has_the_lengths_of_its_streams(tiny_world, model):
    clips = model.attention_of_clips(batch(tiny_world, model, [0, 3]))
    lengths = [{stream: weights.shape[-1] for stream, weights in clip.items()} for clip in clips]
    face, audio, au = Modality.FACE, Modality.AUDIO, Modality.AU
    assert lengths == [{face: 8, audio: 8, au: 5}, {face: 0, audio: 8, au: 0}]  # c3 has no face
    for clip in clips:
        total = sum(weights.sum(dim=-1) for weights in clip.values())
        torch.testing.assert_close(total, torch.ones(2, 2, 4))  # layers, heads, queries


def test_a_clip_without_fused_tokens_has_no_attention(tiny_world, model):
    data = TrainingSamples(open_datasets(tiny_world, "train"), load_prompts(), query_tokens(tiny_world.model), 0)
    whole, frames = data.datasets[0].features(0), {Modality.FRAME: data.datasets[0].features(1)[Modality.FRAME]}
    frames |= {stream: array[:0] for stream, array in whole.items() if stream != Modality.FRAME}
    layout, tokens = tiny_world.datasets["toy"].face_or_frame, query_tokens(tiny_world.model)
    samples = [
        make_sample(Clip(name, "toy"), features, layout, load_prompts(), "ovlabel", tokens)
        for name, features in (("whole", whole), ("frames", frames))
    ]
    collator = Collator(model.tokenizer, 500, generation=True)
    shown, hidden = model.attention_of_clips(collator(samples))
    assert set(shown) == {Modality.FACE, Modality.AUDIO, Modality.AU}
    assert hidden == {}
    assert model.attention_of_clips(collator(samples[1:])) == [{}]


def test_au_keeps_its_own_tokens_where_the_pre_fusion_does_without(tiny_world):
    tiny_world.model.fuse_au = False
    apart = build_affectgpt(tiny_world.model, [FULL]).eval()
    assert set(apart.fusion.projections) == {"video", "audio"}
    b = batch(tiny_world, apart, [0, 1])
    before = apart.tokens(b)
    b.features[Modality.AU] += 1
    after = apart.tokens(b)
    assert torch.equal(before[Modality.MULTI], after[Modality.MULTI])
    assert not torch.equal(before[Modality.AU], after[Modality.AU])


def test_a_picture_becomes_tokens_of_the_prompt(tiny_world):
    tiny_world.model.num_image_query_token = 3
    tiny_world.model.standardize_features = False
    model = build_affectgpt(tiny_world.model, [LAYOUTS["image"]]).eval()
    dim = tiny_world.model.preextracted_visual_dim
    pictures = [np.ones((1, dim), np.float32), np.ones((3, dim), np.float32), np.zeros((0, dim), np.float32)]
    samples = [
        make_sample(
            Clip(f"p{i}", "toy"), {Modality.IMAGE: x}, "image", load_prompts(), "ovlabel", query_tokens(model.config)
        )
        for i, x in enumerate(pictures)
    ]
    b = Collator(model.tokenizer, 500, generation=True)(samples)
    places = b.input_ids == model.tokenizer.convert_tokens_to_ids("<ImageHere>")
    assert places.sum(dim=1).tolist() == [3, 3, 0]
    assert b.rows[Modality.IMAGE].tolist() == [0, 1]
    torch.testing.assert_close(model.embed(b)[places], model.tokens(b)[Modality.IMAGE].flatten(0, 1))
    assert set(model.branches) == {"image"}
    assert any(name.startswith("branches.image.proj") for name in model.trainable())


def test_a_language_model_that_is_not_there_is_named(tiny_world):
    tiny_world.model.llama_model = "/no/such/folder"
    with pytest.raises(FileNotFoundError, match=r"model\.llama_model: .* /no/such/folder .*AFFECT_WEIGHTS"):
        build_affectgpt(tiny_world.model, [FULL])


def test_layouts_that_fuse_different_streams_do_not_share_a_model(tiny_world):
    with pytest.raises(ValueError, match="fuse the same streams"):
        build_affectgpt(tiny_world.model, [FULL, LAYOUTS["multiframe_audio_frame_text"]])


def test_tokens_take_their_places_in_order():
    tokens = {Modality.FACE: torch.arange(8.0).view(2, 2, 2) + 1, Modality.AUDIO: torch.full((1, 1, 2), 9.0)}
    places = {Modality.FACE: torch.tensor([[1, 2], [8, 10]]), Modality.AUDIO: torch.tensor([[4]])}
    out = splice(torch.zeros(3, 4, 2), tokens, places)
    assert out[0, 1:3].tolist() == [[1, 2], [3, 4]]
    assert out[2, [0, 2]].tolist() == [[5, 6], [7, 8]]
    assert out[1].tolist() == [[9, 9], [0, 0], [0, 0], [0, 0]]
    assert out[0, 0].abs().sum() == 0


def test_a_prompt_without_placeholders_stays_as_it_is():
    embeddings = torch.ones(1, 3, 2)
    assert torch.equal(splice(embeddings, {}, {}), embeddings)


def test_a_wrong_number_of_placeholders_is_refused():
    with pytest.raises(ValueError, match=r"<FaceHere>: expected 2 placeholders in a prompt, found 1; prompt file"):
        splice(torch.zeros(1, 3, 2), {Modality.FACE: torch.ones(1, 2, 2)}, {Modality.FACE: torch.tensor([[0]])})
