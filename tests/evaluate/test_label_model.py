import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from affect.evaluate.label_model import LabelModel, label_prompt, sentiment_prompt

TEXTS = ["The person feels happy.", "Nothing.", "She is sad because the train left early in the morning."]


@pytest.fixture
def model(tiny_llm):
    return LabelModel(tiny_llm, batch_size=2, max_new_tokens=6)


def test_every_text_gets_one_answer_on_one_line(model):
    answers = list(model.labels(TEXTS))
    assert len(answers) == 3
    assert all("\n" not in answer and answer == answer.strip() for answer in answers)
    assert list(model.labels([])) == []


def test_an_answer_does_not_depend_on_its_batch(tiny_llm, model):
    alone = LabelModel(tiny_llm, batch_size=1, max_new_tokens=6)
    assert list(alone.labels(TEXTS)) == list(model.labels(TEXTS))
    assert list(alone.sentiments(["[happy]", "[]"])) == list(model.sentiments(["[happy]", "[]"]))


def test_a_chat_model_is_asked_in_its_own_form_without_a_system_turn(tiny_llm, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tiny_llm).save_pretrained(tmp_path)
    model, seen = LabelModel(tmp_path, max_new_tokens=2), []
    generate = model._network.generate
    monkeypatch.setattr(
        model._network, "generate", lambda **given: seen.append(given["input_ids"]) or generate(**given)
    )
    list(model.labels(TEXTS[:1]))
    asked = model._tokenizer.decode(seen[0][0])
    assert asked == f"<|im_start|>user:{label_prompt(TEXTS[0])}<|im_end|><|im_start|>assistant:"


@pytest.mark.parametrize(
    ("said", "labels"),
    [("Output: [happy]", "[happy]"), ("[", "[]"), ("[a,\n b]", "[a, b]"), ("[a] Input: more", "[a]")],
)
def test_what_a_model_writes_around_its_list_is_dropped(model, monkeypatch, said, labels):
    ids = model._tokenizer(said, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(model._network, "generate", lambda **given: torch.cat([given["input_ids"], ids], dim=1))
    assert list(model.labels(["A text."])) == [labels]


def test_braces_in_a_text_stay_as_they_are():
    assert "{text} {labels}" in label_prompt("{text} {labels}")
    assert sentiment_prompt("[{x}]").endswith("Input: [{x}]; Output: ")


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"label model: the folder .*nowhere does not exist; expected weights",
    ):
        LabelModel(tmp_path / "nowhere")
