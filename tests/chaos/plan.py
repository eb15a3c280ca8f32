"""What a seed decides: each act of the nemesis, with its pause, its victim and its strength, and each client's load.

The plan is the same for the same seed, length and number of replicas, and its fingerprint is printed. What the
processes make of it is not: which statement an act meets is decided by the machine.
"""

import hashlib
import random
from dataclasses import dataclass

# Each as often as it stands here.
ACTS = (
    *("kill", "freeze", "freeze_long", "stop", "drop", "cut", "lose_replies", "terminate", "crash", "lock"),
    *("partition", "restart", "fail_over", "fail_over", "fail_over_frozen"),
)
PAUSE_S = (0.3, 2.0)


@dataclass(frozen=True, slots=True)
class Act:
    """One act: `share` in [0, 1) is for what it has to choose."""

    pause_s: float
    name: str
    replica: int
    share: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a seed decides."""

    seed: int
    acts: tuple[Act, ...]

    @classmethod
    def of(cls, seed: int, *, seconds: float, replicas: int) -> "Plan":
        """More acts than the time can hold, each kind once before any comes twice."""
        chance = random.Random(f"{seed} nemesis")
        count = int(seconds / PAUSE_S[0]) + 1
        names: list[str] = []
        while len(names) < count:
            names += chance.sample(ACTS, len(ACTS))
        acts = [Act(chance.uniform(*PAUSE_S), name, chance.randrange(replicas), chance.random()) for name in names]
        return cls(seed, tuple(acts[:count]))

    def chance(self, who: str) -> random.Random:
        """The dice of one client: its steps are the same each time, whatever becomes of them."""
        return random.Random(f"{self.seed} {who}")

    @property
    def fingerprint(self) -> str:
        """The same where the plan is the same."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]
