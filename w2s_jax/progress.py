"""Progress of long passes: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

from w2s_jax import processes

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts work done, `with Progress("observe", total, unit="tok") as progress: progress.add(n)`.

    Args:
        label: what is being done.
        total: how much there is, in units.
        unit: the unit's short name; the rate shown is units per second.

    With several processes the first one alone shows it.
    """

    def __init__(self, label: str, total: int, *, unit: str = "row"):
        self.label, self.total, self.unit, self.show = label, total, unit, processes.is_first()
        self.done, self.began, self.said = 0, time.monotonic(), time.monotonic()
        self.bar = None
        if self.show and sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=label, unit=unit, unit_scale=True, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, amount: int, **shown: float) -> None:
        """Counts `amount` more units done and shows the given figures beside them."""
        self.done += amount
        if self.bar is not None:
            if shown:
                self.bar.set_postfix(shown, refresh=False)
            self.bar.update(amount)
        elif self.show and time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            rate = self.done / (self.said - self.began)
            figures = "".join(f"  {name} {value:.4g}" for name, value in shown.items())
            left = (self.total - self.done) / max(rate, 1e-9)
            print(
                f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.0f} {self.unit}/s, {left:.0f} s left{figures}",
                file=sys.stderr,
            )
