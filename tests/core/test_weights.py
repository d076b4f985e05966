import pytest

from affect.core.weights import resolve_weights, weights_hash


def test_environment_comes_before_the_table_and_the_table_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.delenv("AFFECT_CLIP_VIT_LARGE", raising=False)
    assert resolve_weights("CLIP_VIT_LARGE") == "openai/clip-vit-large-patch14"
    table = tmp_path / "weights.yaml"
    table.write_text("CLIP_VIT_LARGE: /from/table\n")
    monkeypatch.setenv("AFFECT_WEIGHTS", str(table))
    assert resolve_weights("CLIP_VIT_LARGE") == "/from/table"
    monkeypatch.setenv("AFFECT_CLIP_VIT_LARGE", "/from/variable")
    assert resolve_weights("CLIP_VIT_LARGE") == "/from/variable"
    assert resolve_weights("some/other-model") == "some/other-model"


def test_a_table_that_is_no_mapping_is_refused(tmp_path, monkeypatch):
    table = tmp_path / "weights.yaml"
    table.write_text("- a\n")
    monkeypatch.setenv("AFFECT_WEIGHTS", str(table))
    with pytest.raises(ValueError, match="expected lines"):
        resolve_weights("x")


def test_hash_follows_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1" * 3_000_000)
    before = weights_hash(tmp_path)
    assert before == weights_hash(tmp_path) != ""
    (tmp_path / "model.safetensors").write_bytes(b"1" * 2_999_999 + b"2")
    assert weights_hash(tmp_path) != before
    assert weights_hash(tmp_path / "absent") == ""
