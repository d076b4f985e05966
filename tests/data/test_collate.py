"""What becomes of samples in a batch: padding, labels, and what a text that is too long loses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from affect.core.schema import PLACEHOLDERS, Clip, Modality, Sample
from affect.data.collate import IGNORED, Collator, pad_features
from affect.data.dataset import make_sample
from affect.data.prompts import load_prompts
from affect.models.llm import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_llm):
    return load_tokenizer(str(tiny_llm))


def sample(prompt, answer, rows=3):
    return Sample(Clip(prompt, "toy"), {Modality.AU: np.ones((rows, 2), np.float32)}, prompt, answer)


def test_labels_are_on_the_answer_and_its_end_only(tokenizer):
    batch = Collator(tokenizer, 100)([sample("person", "happy"), sample("the person feels", "the lip corners")])
    for row, answer in enumerate(["happy", "the lip corners"]):
        labelled = batch.labels[row][batch.labels[row] != IGNORED]
        assert tokenizer.decode(labelled) == answer + tokenizer.eos_token
        assert torch.equal(labelled, batch.input_ids[row][batch.labels[row] != IGNORED])
    assert batch.attention_mask[0, -1] == 0  # padded on the right
    assert batch.input_ids[0, 0] == tokenizer.bos_token_id


def test_prompts_to_go_on_from_end_at_the_last_column(tokenizer):
    batch = Collator(tokenizer, 100, generation=True)([sample("person", "x"), sample("the person feels", "x")])
    assert batch.attention_mask[:, -1].tolist() == [1, 1]
    assert (batch.labels == IGNORED).all()


def test_features_are_padded_under_a_mask():
    features, masks = pad_features([sample("a", "", rows).features for rows in (0, 2, 5)])
    assert features[Modality.AU].shape == (3, 5, 2)
    assert masks[Modality.AU].sum(dim=1).tolist() == [0, 2, 5]
    assert (features[Modality.AU][~masks[Modality.AU]] == 0).all()


@pytest.fixture(scope="module")
def book():
    return load_prompts()


def asked(book, subtitle, rows=3):
    """A clip with its words, sound and face, as a training sample."""
    features = {stream: np.ones((rows, 2), np.float32) for stream in (Modality.AUDIO, Modality.FACE)}
    clip = Clip("c", "toy", subtitle=subtitle, labels=("sad",))
    tokens = dict.fromkeys(Modality, 3)
    return make_sample(clip, features, "multiface_audio_face_text", book, "ovlabel", tokens, "sad.")


@pytest.mark.parametrize("words", ["the person feels happy " * 30, "我很难过，没有关系。" * 20, "🙂🙃" * 40, "a" * 300])
def test_a_long_prompt_loses_the_beginning_of_its_subtitle_only(tokenizer, book, words):
    whole, empty = (Collator(tokenizer, 10_000).prompt_ids(asked(book, text)) for text in (words, "x"))
    for limit in range(len(empty) + 5, len(empty) + 25):
        ids = Collator(tokenizer, limit).prompt_ids(asked(book, words))
        text = tokenizer.decode(ids)
        before, after = tokenizer.decode(empty).rsplit("x", 1)
        assert text.startswith(before)
        assert text.endswith(after)
        kept = text.removeprefix(before).removesuffix(after)
        assert words.strip().endswith(kept.strip())  # no half of a letter
        assert limit - 4 < len(ids) <= limit < len(whole)


def test_then_the_caption_loses_its_end(tokenizer, book):
    """Letters of several tokens stay whole; the sentences around stay, too."""
    long, short = (
        make_sample(clip, {}, "auonly", book, "ovlabel", dict.fromkeys(Modality, 3))
        for clip in (Clip("c", "toy", nonverbal=words) for words in ("嘴角上扬，🙂 " * 20, "x"))
    )
    before, after = short.prompt.rsplit("x", 1)
    rest = len(Collator(tokenizer, 10_000).prompt_ids(short))
    for limit in range(rest, rest + 12):
        collator = Collator(tokenizer, limit)
        text = tokenizer.decode(collator.prompt_ids(long))
        kept = text.removeprefix(before).removesuffix(after)
        assert text == before + kept + after and long.clip.nonverbal.startswith(kept)
        assert collator([long]).left_out[0] >= 19 - kept.count("，")
    clip = Clip("c", "toy", subtitle="the person " * 20, nonverbal="the lips part")
    both = make_sample(clip, {}, "au_text", book, "ovlabel", dict.fromkeys(Modality, 3))
    whole = len(Collator(tokenizer, 10_000).prompt_ids(both))
    assert "the lips part" in tokenizer.decode(Collator(tokenizer, whole - 10).prompt_ids(both))


class Letters:
    """A tokenizer with a token a letter, and two for each capital."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False):
        ids = [ord(letter) for letter in text for _ in range(1 + letter.isupper())]
        places = [(i, i + 1) for i, letter in enumerate(text) for _ in range(1 + letter.isupper())]
        special = [self.bos_token_id] * add_special_tokens
        more = {"offset_mapping": [(0, 0)] * add_special_tokens + places} if return_offsets_mapping else {}
        return SimpleNamespace(input_ids=special + ids, **more)

    def convert_tokens_to_ids(self, token):
        return 1000 + list(PLACEHOLDERS.values()).index(token)


def lettered(prompt="<ab cD e|fg Hi>", answer="yes", spoken=(1, 8), told=(9, 14)):
    return Sample(Clip("c", "toy"), {}, prompt, answer, spoken, told)


def test_a_batch_is_the_worked_example():
    samples = [lettered("ab", "c"), lettered("d", "efg")]
    a, b, c, d, e, f, g = map(ord, "abcdefg")
    batch = Collator(Letters(), 10)(samples)
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED
    assert batch.input_ids.tolist() == [[1, a, b, c, 2, 0], [1, d, e, f, g, 2]]
    assert batch.labels.tolist() == [[-100, -100, -100, c, 2, -100], [-100, -100, e, f, g, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert (batch.answers.tolist(), batch.padding) == ([2, 3, 7, 8, 9, 10], 1)
    assert (batch.names, batch.left_out, batch.rows, batch.places) == (["c", "c"], [0, 0], {}, {})
    prompts = Collator(Letters(), 10, generation=True)(samples)
    assert prompts.input_ids.tolist() == [[1, a, b], [0, 1, d]]
    assert prompts.attention_mask.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert prompts.labels.unique().tolist() == [-100]
    headless = Letters()
    headless.bos_token_id = None
    assert Collator(headless, 10)(samples).input_ids[1].tolist() == [d, e, f, g, 2]


@pytest.mark.parametrize(
    ("most", "kept", "left_out"),
    [
        (17, "<ab cDD e|fg HHi>", 0),
        (16, "<b cDD e|fg HHi>", 1),
        (15, "< cDD e|fg HHi>", 1),
        (13, "<DD e|fg HHi>", 2),
        (12, "< e|fg HHi>", 2),
        (11, "< e|fg HHi>", 2),
        (10, "<e|fg HHi>", 2),
        (9, "<|fg HHi>", 3),
        (8, "<|fg HH>", 4),
        (7, "<|fg >", 4),
        (6, "<|fg >", 4),
        (4, "<|f>", 5),
        (3, "<|>", 5),
        (2, None, 0),
    ],
)
def test_what_is_left_out_goes_letter_by_letter(most, kept, left_out):
    """Of the subtitle from its beginning, then of the caption from its end; by the model's length, too."""
    for collator in (
        Collator(Letters(), most, generation=True),
        Collator(Letters(), 99, generation=True, context=most + 1),
        Collator(Letters(), 99, generation=True, context=most + 4, room=3),
    ):
        if kept is None and not collator.room:
            with pytest.raises(ValueError, match=r"at most 2 tokens, found 3 without its subtitle"):
                collator([lettered()])
        elif kept is not None:
            batch = collator([lettered()])
            assert "".join(map(chr, batch.input_ids[0, 1:])) == kept
            assert batch.left_out == [left_out]
            assert collator.prompt_ids(lettered()) == batch.input_ids[0, 1:].tolist()


@pytest.mark.parametrize(
    ("context", "kept", "learned"),
    [
        (22, "<ab cDD e|fg HHi>", "yes\2"),
        (21, "<b cDD e|fg HHi>", "yes\2"),
        (8, "<|>", "yes\2"),
        (7, "<|>", "yes"),
        (5, "<|>", "y"),
    ],
)
def test_an_answer_is_cut_when_nothing_else_can_be(context, kept, learned):
    batch = Collator(Letters(), 99, context=context)([lettered()])
    assert "".join(map(chr, batch.input_ids[0, 1:])) == kept + learned
    assert "".join(map(chr, batch.labels[0][batch.labels[0] != IGNORED])) == learned


def test_a_prompt_is_cut_to_the_token(tokenizer, book):
    sample = asked(book, "the person feels happy " * 30)
    whole = Collator(tokenizer, 10_000).prompt_ids(sample)
    limit = len(whole) - 7
    batch = Collator(tokenizer, limit)([sample])
    labelled = batch.labels[0] != IGNORED
    prompt = batch.input_ids[0][~labelled][1:]  # without the token that begins the text
    assert len(prompt) == limit
    assert tokenizer.decode(batch.input_ids[0][labelled]) == "sad." + tokenizer.eos_token
    for token in ("<AudioHere>", "<FaceHere>", "<MultiHere>"):
        assert (prompt == tokenizer.convert_tokens_to_ids(token)).sum() == 3


def test_the_last_words_are_kept_and_the_others_counted(tokenizer, book):
    """Of 5,000 words; the text has room for an answer, one's own or one that is yet to be written."""
    sample = asked(book, " ".join(f"w{i}" for i in range(5000)))
    answer = len(tokenizer(sample.answer, add_special_tokens=False).input_ids) + 1
    for collator, taken in (
        (Collator(tokenizer, 1000, context=300), answer),
        (Collator(tokenizer, 1000, generation=True, context=300, room=30), 30),
    ):
        batch = collator([sample])
        prompt = tokenizer.decode(batch.input_ids[0][batch.labels[0] == IGNORED])
        assert "w4999" in prompt and "w1 " not in prompt
        assert (batch.labels[0] == IGNORED).sum() == 300 - taken
        assert f"w{batch.left_out[0]} " in prompt and f" w{batch.left_out[0] - 1} " not in prompt
    assert Collator(tokenizer, 1000)([asked(book, "the person")]).left_out == [0]


def test_a_prompt_that_fits_is_left_alone(tokenizer, book):
    sample = asked(book, "the person feels happy")
    ids = tokenizer(sample.prompt, add_special_tokens=False).input_ids
    assert Collator(tokenizer, len(ids)).prompt_ids(sample) == ids


def test_a_question_that_does_not_fit_names_its_clip(tokenizer, book):
    with pytest.raises(ValueError, match=r"clip 'c': expected a prompt of at most 20 tokens, found \d+ without its"):
        Collator(tokenizer, 20)([asked(book, "the person feels happy " * 30)])


def test_a_long_answer_is_cut_and_its_end_is_not_learned(tokenizer):
    words = tokenizer("happy " * 20, add_special_tokens=False).input_ids
    for limit, ends in ((len(words) - 1, []), (len(words), [tokenizer.eos_token_id])):
        batch = Collator(tokenizer, limit)([sample("a", "happy " * 20)])
        assert batch.labels[0][batch.labels[0] != IGNORED].tolist() == words[:limit] + ends


def test_what_is_known_of_a_batch_is_what_its_tensors_say(tokenizer, book):
    samples = [asked(book, "the person feels"), asked(book, "", rows=2), sample("person", "happy")]
    samples[2].features |= {stream: np.zeros((0, 2), np.float32) for stream in samples[0].features}
    for each in samples[:2]:
        each.features[Modality.AU] = np.zeros((0, 2), np.float32)
    for generation in (False, True):
        batch = Collator(tokenizer, 500, generation)(samples)
        assert batch.padding == (batch.attention_mask == 0).sum()
        foretold = batch.labels.flatten()[batch.answers + 1]
        assert torch.equal(foretold, batch.labels[batch.labels != IGNORED])
        assert batch.rows.keys() == batch.places.keys() == {Modality.AUDIO, Modality.FACE, Modality.MULTI}
        for stream, places in batch.places.items():
            assert batch.rows[stream].tolist() == [0, 1]
            where = batch.input_ids == tokenizer.convert_tokens_to_ids(PLACEHOLDERS[stream])
            assert torch.equal(places.flatten(), where.flatten().nonzero().flatten())
            assert places.shape == (2, 3)
        assert batch.lengths == {stream: mask.sum(dim=1).tolist() for stream, mask in batch.masks.items()}


def test_prompts_that_show_a_stream_in_unlike_numbers_are_refused(tokenizer):
    samples = [sample("<FaceHere>", "x"), sample("<FaceHere><FaceHere>", "x")]
    with pytest.raises(ValueError, match=r"<FaceHere>: expected as many in each prompt .* found \[1, 2\]"):
        Collator(tokenizer, 500)(samples)


def test_a_batch_is_moved_as_a_whole(tokenizer, book):
    batch = Collator(tokenizer, 500)([asked(book, "the person feels")])
    there = batch.to("meta")
    assert (there.names, there.padding, there.lengths) == (batch.names, batch.padding, batch.lengths)
    tensors = [there.input_ids, there.attention_mask, there.labels, there.answers]
    for part in (there.features, there.masks, there.rows, there.places):
        tensors += part.values()
    assert {tensor.device.type for tensor in tensors} == {"meta"}
