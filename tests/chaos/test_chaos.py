"""A minute of chaos in each run of the tests; `python tests/chaos/chaos.py --seconds 3600` is the long one.

CHAOS_SEED repeats a plan; CHAOS_SECONDS is how long the nemesis works.
"""

import os
import random

from chaos.chaos import Chaos
from chaos.plan import ACTS, Plan


def test_a_seed_is_a_plan_and_another_seed_is_another():
    plan = Plan.of(7, seconds=60, replicas=3)
    assert plan == Plan.of(7, seconds=60, replicas=3)
    assert plan.fingerprint != Plan.of(8, seconds=60, replicas=3).fingerprint
    assert {act.name for act in plan.acts[: len(ACTS)]} == set(ACTS)
    assert plan.chance("sql 0").random() == Plan.of(7, seconds=60, replicas=3).chance("sql 0").random()


async def test_every_promise_of_the_jobs_holds_in_a_minute_of_chaos(tmp_path):
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    seconds = float(os.environ.get("CHAOS_SECONDS") or 60)
    print(f"seed {seed}")
    chaos = Chaos(seed=seed, seconds=seconds, replicas=3, lease_s=3.0, directory=tmp_path)
    problems = await chaos.run()
    assert not problems, f"seed {seed}: {problems[:20]}"
    assert chaos.history.acknowledged
    assert chaos.history.keys
