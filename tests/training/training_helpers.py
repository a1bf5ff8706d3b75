"""What several tests of training share."""

from commands import data_files  # noqa: F401 - offered to the tests beside the rest

from saelab.activations.source import StoreSource
from saelab.interrupts import StopRequest
from saelab.training import single
from saelab.training.passes import HowToTrain


class StopAfter(StopRequest):
    """Asks for a stop when it has been looked at so many times."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def requested(self):
        self.looks -= 1
        return self.looks < 0


class SimulatedCrash(BaseException):
    """Not an Exception, so that nothing can catch it and tidy up: like a kill."""


def train_run(config, store, folder, **how):
    """Train on a store, showing nothing."""
    return single.train_run(config, StoreSource(store), folder, HowToTrain(quiet=True, **how))
