"""What two processes of `torchrun --nproc-per-node 2` do for tests/tasks/test_expressions_distributed.py, one run after
another.

Arguments: the folder with the configurations two.yaml, stopped.yaml and broken.yaml.
"""

import os
import signal
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

import affect.engine.trainer
from fer_runs import run


def main(folder: Path) -> None:
    rank, step = os.environ["RANK"], affect.engine.trainer.training_step
    run(folder / "two.yaml")

    def stopped_step(*arguments):
        report = step(*arguments)
        if rank == "1":
            os.kill(os.getpid(), signal.SIGTERM)  # one of the two only
        return report

    def broken_step(task, model, optimizer, window, *arguments):
        if rank == "1":
            window[-1].images[0] = float("nan")
        return step(task, model, optimizer, window, *arguments)

    AcceleratorState._reset_state()
    affect.engine.trainer.training_step = stopped_step
    (folder / f"code_{rank}").write_text(str(run(folder / "stopped.yaml")))
    AcceleratorState._reset_state()
    affect.engine.trainer.training_step = broken_step
    try:
        run(folder / "broken.yaml")
    except FloatingPointError as error:
        (folder / f"error_{rank}").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
