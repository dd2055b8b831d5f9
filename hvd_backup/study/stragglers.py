"""Random stragglers, and when the k-th gradient of a round is there.

Chen et al. 2016 (arXiv 1604.00981) saw step times with a narrow body and a heavy tail. The model
here has both: every step is delayed by a log-normal jitter, a few by a Pareto tail as well.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DelayModel:
    """The delay of one rank in one step.

    jitter_median_s: median of the log-normal jitter, seconds
    jitter_sigma: its shape, the standard deviation of the logarithm
    tail_probability: how many of the (rank, step) pairs straggle, 0 to 1
    tail_scale_s: the least delay of a straggler, seconds
    tail_shape: exponent of the Pareto tail, above 1 (so that there is a mean); lower is heavier
    """

    jitter_median_s: float = 0.010
    jitter_sigma: float = 0.5
    tail_probability: float = 0.02
    tail_scale_s: float = 0.2
    tail_shape: float = 2.5

    def __post_init__(self) -> None:
        if min(self.jitter_median_s, self.jitter_sigma, self.tail_scale_s) < 0:
            raise ValueError(f"delays cannot be negative: {self}")
        if not 0 <= self.tail_probability <= 1:
            raise ValueError(f"tail_probability must lie in 0 to 1, not {self.tail_probability}")
        if self.tail_shape <= 1:
            raise ValueError(f"tail_shape must be above 1, not {self.tail_shape}")

    def delay_s(self, seed: int, rank: int, step: int) -> float:
        """Seconds that `rank` loses in `step`: a pure function, so runs meet the same delays."""
        random = np.random.default_rng([seed, rank, step])
        jitter = self.jitter_median_s * math.exp(self.jitter_sigma * random.standard_normal())
        if random.random() >= self.tail_probability:
            return jitter
        return jitter + self.tail_scale_s * (1 + random.pareto(self.tail_shape))

    def table_s(self, seed: int, ranks: int, steps: int) -> Floats:
        """The delays of a whole run, float64 [steps, ranks], seconds."""
        pairs = [[self.delay_s(seed, rank, step) for rank in range(ranks)] for step in range(steps)]
        return np.array(pairs, np.float64).reshape(steps, ranks)

    @property
    def mean_s(self) -> float:
        """Expected delay, seconds."""
        jitter = self.jitter_median_s * math.exp(self.jitter_sigma**2 / 2)
        tail = self.tail_scale_s * self.tail_shape / (self.tail_shape - 1)
        return jitter + self.tail_probability * tail

    def __str__(self) -> str:
        return (
            f"log-normal jitter (median {1e3 * self.jitter_median_s:g} ms, "
            f"sigma {self.jitter_sigma:g}), and for {100 * self.tail_probability:g} % of the steps "
            f"of a rank a Pareto tail ({1e3 * self.tail_scale_s:g} ms or more, "
            f"shape {self.tail_shape:g})"
        )


def kth_arrivals(arrived_s: Floats, contributed: NDArray[np.bool_]) -> Floats:
    """Sort each round's arrivals: entry [r, k-1] is when the k-th gradient of round r was there.

    arrived_s: float64 [rounds, ranks], NaN for a rank that gave the round up
    contributed: bool [rounds, ranks], who arrived before the seal

    A rank that did not contribute is censored, and not at random: all that is known of it is that
    it would have come later than the others. So it takes the last places of its row, as infinity,
    and column k is a sample of the k-th arrival only where it is finite throughout (`observed`).
    """
    return np.sort(np.where(contributed, arrived_s, np.inf), axis=1)


def observed(kth: Floats) -> list[int]:
    """Those k (from 1) whose arrival was seen in every round of `kth_arrivals`."""
    return [int(k) + 1 for k in np.flatnonzero(np.isfinite(kth).all(axis=0))]
