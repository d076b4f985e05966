"""affect doctor: what it finds, what it misses, and what it says to do."""

from __future__ import annotations

import pytest

from affect.cli import doctor


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    for name in ("AFFECT_WEIGHTS", "OPENFACE_EXECUTABLE", "AFFECT_QWEN25"):
        monkeypatch.delenv(name, raising=False)


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_machine_with_everything_needed_is_well(capsys):
    assert doctor.main([]) == 0
    assert lines(capsys)[-1] == "everything that is needed is here"


def test_a_required_package_that_is_missing_or_old_is_named_with_what_to_do(monkeypatch, capsys):
    wanted = ["no-such-package>=1", "numpy>=999", "pydantic>=2", "alsomissing; extra == 'ray'"]
    monkeypatch.setattr(doctor, "requires", lambda package: wanted)
    assert doctor.main([]) == 1
    found = "\n".join(lines(capsys))
    assert "no-such-package          not installed, expected >=1  -> pip install" in found
    assert "numpy " in found and "expected >=999" in found
    assert "1 of 3 packages are here" in found


def test_an_installation_without_metadata_is_no_traceback(monkeypatch, capsys):
    def missing(package):
        raise doctor.PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "requires", missing)
    assert doctor.main([]) == 1
    assert any(line.strip().startswith("affect ") and "not installed" in line for line in lines(capsys))


def test_weights_say_where_they_are_and_which_folder_is_not_there(monkeypatch, tmp_path, capsys):
    (tmp_path / "clip").mkdir()
    table = tmp_path / "weights.yaml"
    table.write_text(f"CLIP_VIT_LARGE: {tmp_path / 'clip'}\nHUBERT_LARGE: {tmp_path / 'nowhere'}\n")
    monkeypatch.setenv("AFFECT_WEIGHTS", str(table))
    assert doctor.main([]) == 1
    found = {line.split()[0]: line for line in lines(capsys) if line.startswith("  ")}
    assert found["CLIP_VIT_LARGE"].endswith(str(tmp_path / "clip"))
    assert "does not exist" in found["HUBERT_LARGE"]
    assert "hub id" in found["WAVLM_LARGE"]


def test_a_broken_table_of_weights_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "weights.yaml").write_text("- a\n")
    monkeypatch.setenv("AFFECT_WEIGHTS", str(tmp_path / "weights.yaml"))
    assert doctor.main([]) == 1
    assert sum("expected lines" in line for line in lines(capsys)) == 1


def test_openface_is_found_where_the_variable_names_it(monkeypatch, tmp_path, capsys):
    binary = tmp_path / "FeatureExtraction"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("OPENFACE_EXECUTABLE", str(binary))
    doctor.main([])
    assert any(line.split() == ["OpenFace", str(binary)] for line in lines(capsys))


def test_mediapipe_is_wanted_only_where_it_is_named(monkeypatch, capsys):
    assert doctor.main([]) == 0
    assert any(line.split()[:3] == ["mediapipe", "is", "not"] for line in lines(capsys))
    monkeypatch.setenv("AFFECT_MEDIAPIPE_PYTHON", "/nowhere/python")
    assert doctor.main([]) == 1
    assert any("/nowhere/python is no program  -> make an environment" in line for line in lines(capsys))
