"""Files made wrong on purpose: whatever is wrong with one, its reader says so in one sentence, at little cost."""

import multiprocessing
import resource
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from affect.core.reading import LONGEST
from mutations import mutated
from readers import READERS, SHARED

SHORT, LONG = 12, 60_000


@dataclass
class Findings:
    """What became of the inputs of one reader."""

    read: int = 0
    refused: int = 0
    slowest: float = 0
    """Seconds of the processor."""
    slowest_input: int = -1
    memory_mb: float = 0
    """How much more the process took than before, at most."""


def fuzz(name: str, numbers: range, folder: Path) -> Findings:
    """Give a reader its inputs of these numbers (raises AssertionError naming the one that ended otherwise)."""
    reader, findings = READERS[name], Findings()
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = reader.whole(folder)
    path.write_bytes(whole[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader.read(path)
        for number in numbers:
            (folder / "at.txt").write_text(str(number))  # told where the process dies of it
            path.write_bytes(mutated(whole, number))
            begun = time.process_time()
            try:
                reader.read(path)
                findings.read += 1
            except Exception as error:
                require_sentence(error, folder, f"{name}, input {number}")
                findings.refused += 1
            seconds = time.process_time() - begun
            if seconds > findings.slowest:
                findings.slowest, findings.slowest_input = seconds, number
    findings.memory_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    return findings


def require_sentence(error: Exception, folder: Path, what: str) -> None:
    own = isinstance(error, ValueError | OSError) and type(error).__module__.split(".")[0] in ("affect", "builtins")
    lines = str(error).splitlines()
    if not own or str(folder) not in str(error) or max(map(len, lines), default=0) > LONGEST:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}"[:2000]) from error


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_sentence(name, tmp_path):
    findings = fuzz(name, range(round(SHORT * READERS[name].share)), tmp_path)
    assert findings.read + findings.refused > 0


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_60000_damaged_files_are_one_sentence_each_at_little_cost(name, tmp_path, shared, capsys):
    """In a process of its own, whose memory is measured; real files are among those that are damaged."""
    assert SHARED.is_dir()
    shares = {name: reader.share for name, reader in READERS.items()}
    count = -(-LONG * shares[name] // sum(shares.values()))
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
        findings = process.submit(fuzz, name, range(1_000_000, 1_000_000 + int(count)), tmp_path).result()
    with capsys.disabled():
        print(f"{name}: {findings}")
    assert findings.slowest < 5 and findings.memory_mb < 1024
