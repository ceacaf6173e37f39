"""How far two runs may drift apart by rounding alone, and whether they stayed within it."""

from typing import NamedTuple

import numpy as np

from demo.training import Run

# A step rounds each parameter once in either run: together one epsilon of the largest parameter. The gradients are
# rounded a few times more, but enter by a step that is far smaller than the parameter: one epsilon more covers them.
# Rounding errors add up as a random walk does, with the square root of the number of steps; nothing amplifies them, for
# the models are smooth and the learning rates well inside stability. With the settings in tasks.py two correct runs
# stay within a twentieth of this, and a gradient that is wrong by one part in 10,000 is more than twice outside it.
EPSILONS_A_STEP = 2.0


class Agreement(NamedTuple):
    """The largest difference of any parameter after any epoch, and the same for the two loss curves."""

    parameters: float
    parameters_allowed: float
    losses: float
    losses_allowed: float

    @property
    def holds(self) -> bool:
        # Not `>`: a NaN must fail.
        return self.parameters <= self.parameters_allowed and self.losses <= self.losses_allowed


def agreement(run: Run, other: Run) -> Agreement:
    """Compare two runs from the same initial parameters on the same batches."""
    growth = EPSILONS_A_STEP * float(np.finfo(np.float32).eps) * run.steps**0.5
    losses, other_losses = (np.stack([r.train_loss, r.test_loss]) for r in (run, other))
    return Agreement(
        parameters=float(np.abs(run.parameters - other.parameters).max()),
        parameters_allowed=growth * float(np.abs(other.parameters).max()),
        losses=float(np.abs(losses - other_losses).max()),
        losses_allowed=growth * float(np.abs(other_losses).max()),
    )
