"""The objectives of `jaxloss.objectives`: the oracle of each, and what its numbers and data may be."""

import dataclasses
from collections.abc import Callable, Mapping

from trust import policy_objectives, preferences
from trust.balls import Objective

BONUS = (0.01, 0.3, -0.1, 0.0)
CLIP, NARROW_CLIP = (0.2, 0.05, 0.5, 0.0, 1.5), (3e-4, 4e-4, 1e-3, 0.2)
EITHER, OF_TOKENS, OF_SEQUENCES = ("tokens", "sequences"), ("tokens",), ("sequences",)


@dataclasses.dataclass(frozen=True)
class Named:
    """An objective of `jaxloss.objectives`.

    Attributes:
        equation: the oracle, of the objective's name.
        numbers: what each of its numbers may be; one that is left out is as the oracle's default says.
        data: in its order, and whether there is one for each token or each sequence.
        near: how far the policy's log-probabilities may be from those of data.
        required: the numbers that are never left out.
        single: blocks may be single tokens.
        pairs: sequences are.
        stops: no derivative follows a part of it.
    """

    equation: Callable[..., Objective]
    numbers: Mapping[str, tuple[float, ...]]
    data: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    near: tuple[float, ...] = (0.0, 0.03, 0.3, 2.0)
    required: tuple[str, ...] = ()
    single: bool = False
    pairs: bool = False
    stops: bool = False

    @property
    def name(self) -> str:
        return self.equation.__name__


_OF_POLICY = {"advantages": EITHER, "old_log_prob": OF_TOKENS}
_CLIPPED = {"epsilon": CLIP, "epsilon_high": CLIP, "entropy_bonus": BONUS}
_PAIR = {"reference_log_prob": EITHER}
OBJECTIVES = (
    Named(policy_objectives.reinforce, {"entropy_bonus": BONUS}, {"advantages": EITHER}, single=True),
    Named(policy_objectives.ppo, _CLIPPED, _OF_POLICY, single=True),
    Named(policy_objectives.grpo, _CLIPPED, _OF_POLICY),
    Named(
        policy_objectives.grpo,
        {**_CLIPPED, "beta": (0.04, 0.5)},
        {**_OF_POLICY, "reference_log_prob": OF_TOKENS},
        required=("beta",),
    ),
    Named(policy_objectives.cispo, {**_CLIPPED, "epsilon_high": (5.0, 0.2, 0.0)}, _OF_POLICY, single=True, stops=True),
    Named(
        policy_objectives.gspo,
        {"epsilon": NARROW_CLIP, "epsilon_high": NARROW_CLIP},
        {**_OF_POLICY, "advantages": OF_SEQUENCES},
        near=(0.0, 3e-4, 1e-3, 0.3),
    ),
    Named(
        preferences.kto,
        {"beta": (0.5, 0.1, 2.0), "desirable_weight": (1.0, 0.75, 3.0, 0.0), "undesirable_weight": (1.0, 1.33)},
        {"desirable": OF_SEQUENCES, "reference_log_prob": EITHER, "divergence": OF_SEQUENCES},
    ),
    Named(preferences.dpo, {"beta": (0.5, 0.1), "smoothing": (0.25, 0.0, 1.0)}, _PAIR, pairs=True),
    Named(preferences.ipo, {"tau": (0.5, 0.1)}, _PAIR, pairs=True),
    Named(preferences.simpo, {"beta": (2.0, 0.5), "gamma": (0.5, 0.0, -1.0)}, pairs=True),
    Named(preferences.orpo, {"weight": (0.1, 1.0, 0.0)}, pairs=True),
)
