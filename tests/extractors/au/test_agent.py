"""The LLM makers: prompts, batching, adapters, refusals; on a tiny random model."""

import shutil
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from affect.core.au_json import AuAnalysis, sentences
from affect.core.conversation import SYSTEM, question_ids
from extractors.au.agent import AuAgent, build_agent
from extractors.au.templates import frame_prompt
from toy_agent import CLIPS, DISTINCT, FRAMES, NO_SYSTEM, with_template


@pytest.fixture(scope="module")
def adapter(chat_llm, tmp_path_factory):
    """Folder of a tiny random LoRA adapter."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(chat_llm), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("templated", [True, False], ids=["template", "plain"])
def test_batched_answers_equal_those_one_at_a_time(plain_llm, chat_llm, templated):
    model = chat_llm if templated else plain_llm
    together = AuAgent(model, batch_size=4, max_new_tokens=12).describe(FRAMES)
    alone = AuAgent(model, batch_size=1, max_new_tokens=12)
    assert together == [pair for frame in FRAMES for pair in alone.describe([frame])]
    assert len({answer for _, answer in together}) == len(FRAMES)


def test_answer_alone_is_the_tail_of_the_exchange(chat_llm):
    for frame, (whole, answer) in zip(FRAMES, AuAgent(chat_llm, max_new_tokens=8).describe(FRAMES), strict=True):
        assert answer and whole == f"system\n{SYSTEM}\nuser\n{frame_prompt(frame)}\nassistant\n{answer}"


def test_adapter_changes_the_answers_and_is_named(chat_llm, adapter):
    plain, tuned = AuAgent(chat_llm, max_new_tokens=8), AuAgent(chat_llm, adapter, max_new_tokens=8)
    assert plain.describe(FRAMES) != tuned.describe(FRAMES)
    assert str(adapter) in tuned.made_by and str(adapter) not in plain.made_by
    assert tuned.describe(FRAMES) == AuAgent(chat_llm, adapter, batch_size=2, max_new_tokens=8).describe(FRAMES)


def test_chat_template_shapes_the_prompt(chat_llm, plain_llm, monkeypatch):
    def prompt_of(model):
        agent, seen = AuAgent(model, max_new_tokens=1), []
        monkeypatch.setattr(agent.model, "generate", lambda input_ids, **_: seen.append(input_ids) or input_ids)
        agent.describe([{"AU12_r": 1.5}])
        return agent.tokenizer.decode(seen[0][0])

    user = frame_prompt({"AU12_r": 1.5})
    chat = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(chat_llm) == chat
    assert prompt_of(plain_llm) == f"system\n{SYSTEM}\nuser\n{user}\nassistant\n"


def test_template_and_tokenizer_do_not_both_open_the_text(chat_llm, plain_llm, monkeypatch):
    opening = TemplateProcessing(single="<|im_end|> $A", special_tokens=[("<|im_end|>", 2)])
    for model, openings in ((chat_llm, 0), (plain_llm, 1)):
        agent, seen = AuAgent(model, max_new_tokens=1), []
        agent.tokenizer.backend_tokenizer.post_processor = opening
        monkeypatch.setattr(
            agent.model, "generate", lambda input_ids, seen=seen, **_: seen.append(input_ids) or input_ids
        )
        agent.describe([{"AU12_r": 1.5}])
        assert seen[0][0].tolist()[:1].count(2) == openings


def test_template_that_knows_no_system_turn_gets_the_rules_from_the_user(plain_llm, tmp_path, monkeypatch):
    agent, seen = AuAgent(with_template(plain_llm, tmp_path / "llm", NO_SYSTEM), max_new_tokens=1), []
    monkeypatch.setattr(agent.model, "generate", lambda input_ids, **_: seen.append(input_ids) or input_ids)
    agent.describe([{}])
    text = agent.tokenizer.decode(seen[0][0])
    assert text == f"<|im_start|>user\n{SYSTEM}\n{frame_prompt({})}<|im_end|>\n<|im_start|>assistant\n"


def test_rules_forbid_emotion():
    assert "Do not name" in SYSTEM and "emotion" in SYSTEM


def test_turns_that_the_model_makes_up_are_dropped(chat_llm, monkeypatch):
    agent = AuAgent(chat_llm, max_new_tokens=4)
    said = agent.tokenizer("The lips part.\nuser\nMore?\nassistant\nNo.", return_tensors="pt")["input_ids"]
    monkeypatch.setattr(agent.model, "generate", lambda input_ids, **_: torch.cat([input_ids, said], dim=1))
    ((whole, answer),) = agent.describe([{"AU25_r": 1.0}])
    assert answer == "The lips part." and whole.endswith("\nassistant\nThe lips part.")


def test_models_own_settings_do_not_count(plain_llm, tmp_path):
    folder = tmp_path / "llm"
    shutil.copytree(plain_llm, folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    others = [i for i in range(model.config.vocab_size) if i != tokenizer.convert_tokens_to_ids("e")]
    model.generation_config.update(do_sample=True, suppress_tokens=others)
    model.save_pretrained(folder)
    greedy = AuAgent(folder, max_new_tokens=8).describe(FRAMES)
    assert greedy == AuAgent(plain_llm, max_new_tokens=8).describe(FRAMES)


def test_answers_stop_at_the_end_token_and_at_the_limit(chat_llm):
    agent = AuAgent(chat_llm, max_new_tokens=6)
    inputs = agent.tokenizer("The lips part.", return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    made = agent.model.generate(input_ids=ids, attention_mask=mask)[0, ids.shape[1] :]
    assert len(made) == 6
    agent.model.generation_config.eos_token_id = [int(made[1])]
    assert len(agent.model.generate(input_ids=ids, attention_mask=mask)[0]) == ids.shape[1] + 2


def test_end_tokens_of_model_and_tokenizer_both_count(chat_llm, tmp_path):
    folder = tmp_path / "llm"
    shutil.copytree(chat_llm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    stops = AuAgent(folder).model.generation_config.eos_token_id
    assert stops == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_agent_fills_an_analysis_as_the_templates_do(chat_llm):
    clip = AuAnalysis(
        per_frame_au_descriptions=[{"frame": i + 1, "active_aus": aus} for i, aus in enumerate(FRAMES)],
        au_info={"total_frames": 5, "frames_without_face": [[2, 2]]},
    )
    agent = AuAgent(chat_llm, max_new_tokens=6)
    told = agent.describe_clips([(clip, [0, 1, 2])])[0]
    assert list(told.summary_description) == ["1", "3"] and len(sentences(told)) == 2
    assert told.per_frame_au_descriptions[2]["fine_grained_description"].endswith(told.summary_description["3"])
    assert told.provenance["sentences"] == agent.made_by


def test_no_frames_need_no_answers(chat_llm):
    assert AuAgent(chat_llm).describe([]) == []


def test_name_of_weights_is_looked_up(chat_llm, monkeypatch):
    monkeypatch.setenv("AFFECT_AU_AGENT", str(chat_llm))
    assert AuAgent("AU_AGENT", max_new_tokens=4).describe(FRAMES[:1])


def test_missing_folders_are_named(chat_llm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"AU agent: the folder .*gone does not exist"):
        AuAgent(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"AU agent, adapter: the folder .*gone does not exist"):
        AuAgent(chat_llm, tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="AU agent: the folder gone/away/too"):
        AuAgent("./gone/away/too")


def test_folders_that_hold_something_else_are_refused_in_one_sentence(chat_llm, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(chat_llm, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    for model, adapter in ((tmp_path / "empty", None), (cut, None), (chat_llm, tmp_path / "empty")):
        with pytest.raises(ValueError, match="cannot be loaded") as caught:
            AuAgent(model, adapter)
        assert "\n" not in str(caught.value) and str(adapter or model) in str(caught.value)


def test_hub_id_that_cannot_be_fetched_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="nobody/no-such-model cannot be loaded"):
        AuAgent("nobody/no-such-model")


def test_sizes_below_one_are_refused(chat_llm):
    with pytest.raises(ValueError, match="batch_size is 0"):
        AuAgent(chat_llm, batch_size=0)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        AuAgent(chat_llm, max_new_tokens=0)


def test_a_padding_token_that_the_model_does_not_know_is_not_needed(tiny_llm, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<|beyond the embedding|>"})
    tokenizer.save_pretrained(folder)
    made = AuAgent(folder, max_new_tokens=4).describe([{"AU12_r": 2.0}, {"AU04_r": 3.0, "AU12_r": 1.0}])
    assert len(made) == 2


# -- many clips ------------------------------------------------------------------------------------


def _count_generated(agent, monkeypatch) -> list[tuple[int, int]]:
    """Return a list that collects the shape of every batch from here on."""
    shapes, generate = [], agent.model.generate

    def counting(input_ids, **rest):
        shapes.append(tuple(input_ids.shape))
        return generate(input_ids=input_ids, **rest)

    monkeypatch.setattr(agent.model, "generate", counting)
    return shapes


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_clips_together_get_what_each_gets_alone(chat_llm, batch_size):
    together = AuAgent(chat_llm, batch_size=batch_size, max_new_tokens=10).describe_clips(CLIPS)
    assert together == [AuAgent(chat_llm, max_new_tokens=10).describe_clips([clip])[0] for clip in CLIPS]
    assert [told.source_path for told in together] == ["a.mp4", "b.mp4", "c.mp4"]
    assert len({text for told in together for text in sentences(told)}) == DISTINCT


def test_equal_prompts_are_asked_once_and_the_longest_first(chat_llm, monkeypatch):
    agent = AuAgent(chat_llm, batch_size=2, max_new_tokens=2)
    shapes = _count_generated(agent, monkeypatch)
    agent.describe_clips(CLIPS)
    assert [rows for rows, _ in shapes] == [2, 2, 1]
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1] + 50


def test_clips_tried_again_one_by_one_cost_nothing_new(chat_llm, monkeypatch):
    agent, asked = AuAgent(chat_llm, max_new_tokens=4), Counter()
    empty = question_ids(agent.tokenizer, [(SYSTEM, frame_prompt({"AU12_r": 3.0}))])[0]

    def generate(prompts):
        for ids in prompts:
            asked[tuple(ids)] += 1
            yield "" if ids == empty else "The lips part."

    monkeypatch.setattr(agent, "_generate", generate)
    with pytest.raises(ValueError, match=r"^b\.mp4: language model .* gave an empty sentence for frame 3"):
        agent.describe_clips(CLIPS)
    assert [sentences(agent.describe_clips([CLIPS[i]])[0]) for i in (0, 2)] == [["The lips part."] * 2] * 2
    with pytest.raises(ValueError, match=r"^b\.mp4"):
        agent.describe_clips([CLIPS[1]])
    assert len(asked) == DISTINCT and set(asked.values()) == {1}


def test_answers_of_earlier_calls_are_forgotten(chat_llm, monkeypatch):
    agent = AuAgent(chat_llm, max_new_tokens=2)
    shapes = _count_generated(agent, monkeypatch)
    for clip in (CLIPS[0], CLIPS[1], CLIPS[0]):
        agent.describe_clips([clip])
    assert [rows for rows, _ in shapes] == [2, 2, 1]  # the face at rest is in both clips


def test_answers_that_end_early_are_not_filled_up(plain_llm, tmp_path, monkeypatch):
    folder = tmp_path / "llm"
    shutil.copytree(plain_llm, folder)
    free, rows = AuAgent(plain_llm, max_new_tokens=16), []
    generate = free.model.generate
    monkeypatch.setattr(free.model, "generate", lambda **given: rows.append(generate(**given)) or rows[0])
    endless = free.describe(FRAMES)
    made = [set(row[3:8]) for row in rows[0][:, -16:].tolist()]
    # a stop that is an ordinary token, and that some answers reach early and others do not
    stop = next(
        token for token in sorted(set.union(*made), reverse=True) if 0 < sum(token in row for row in made) < len(made)
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = stop
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    together = AuAgent(folder, max_new_tokens=16).describe(FRAMES)
    alone = AuAgent(folder, batch_size=1, max_new_tokens=16)
    assert together == [alone.describe([frame])[0] for frame in FRAMES]
    cut = [full.startswith(answer) and full != answer for (_, answer), (_, full) in zip(together, endless, strict=True)]
    assert any(cut) and not all(cut)


def test_clips_after_clips_need_one_load(chat_llm, monkeypatch):
    loads, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **rest: loads.append(args) or load(*args, **rest)
    )
    agent = build_agent(chat_llm, max_new_tokens=2)
    for clip in CLIPS:
        agent.describe_clips([clip])
    assert len(loads) == 1
