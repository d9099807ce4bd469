"""Who watches jobs and their training: the base looks away; what a terminal shows is in `bnlab/report/progress.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnlab.training.job import ResultState


class Callback:
    """What jobs report of themselves, between steps only; this base shows nothing.

    Leaving its `with` block closes it, whatever happened.
    """

    def sweep_started(self, num_jobs: int) -> None:
        """`num_jobs` jobs follow; without this call there is one run."""

    def job_started(self, index: int, label: str, total_steps: int) -> None:
        """Job `index` (from 0) starts; `label` is what tells it apart."""

    def advanced(self, step: int, loss: float, images_per_second: float) -> None:
        """The current job has done `step` steps; `loss` is of the last one."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The current job was evaluated; `metrics` are curve values such as `valid.accuracy` (0 to 1)."""

    def job_ended(self, index: int, state: ResultState, headline: str, accuracy: float | None = None) -> None:
        """Job `index` ended; `headline` says in a few words how; `accuracy` is on the test set, if it is done."""

    def running(self, labels: Sequence[str]) -> None:
        """These jobs are being done, by whatever a launcher started."""

    def noted(self, text: str) -> None:
        """Something that the user should know, in a line."""

    def waits(self, text: str) -> None:
        """The current job waits for what other jobs hold, until it starts; `text` says so."""
        self.noted(text)

    def closed(self) -> None:
        """Nothing follows; a display is taken away and the cursor shown. A second call does nothing."""

    def __enter__(self) -> Callback:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed()
