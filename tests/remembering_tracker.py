"""A tracker that keeps what it is told."""

from accelerate.tracking import GeneralTracker


class Remembering(GeneralTracker):
    name, requires_logging_directory = "remembering", False

    def __init__(self):
        super().__init__()
        self.config, self.logged, self.finished = {}, [], False

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step, **_):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True
