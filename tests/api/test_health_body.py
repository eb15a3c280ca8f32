"""`/health`'s body, whose parts are kept between two looks: what is kept is never older than the state."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.health import HealthBody, health
from orchestrator.lifecycle import Lifecycle, Phase

_TO_READY = (Phase.CONNECTING, Phase.LOCKING, Phase.EXTENSIONS, Phase.MIGRATING, Phase.LAUNCHING, Phase.READY)


class _Clock:
    now_s = 1_800_000_000.25
    monotonic_s = 50.5

    def ready_life(self) -> Lifecycle:
        life = Lifecycle(lambda: self.now_s, lambda: self.monotonic_s)
        for phase in _TO_READY:
            life.enter(phase)
        return life


@given(
    st.lists(
        st.sampled_from(["look", "check", "warn", "lose", "return", "tick", "second", "clock set back", "fail"]),
        max_size=30,
    )
)
def test_the_text_is_the_body_of_the_instant_whatever_happened_before(steps):
    clock = _Clock()
    life = clock.ready_life()
    body = HealthBody(life)
    for step in steps:
        if step == "check":
            life.check("database", "ok", server=f"at {clock.monotonic_s}")
        elif step == "warn":
            life.warn("extension.missing", extension=f"vector at {clock.monotonic_s}", note='"ü\n')
        elif step == "lose" and life.phase is Phase.READY:
            life.enter(Phase.CONNECTING)
        elif step == "return" and life.phase is Phase.CONNECTING:
            life.enter(Phase.READY)
        elif step == "fail":
            life.fail(error="it failed", at=clock.monotonic_s)
        else:
            clock.now_s += {"tick": 0.0625, "second": 1.0, "clock set back": -7200.5}.get(step, 0.0)
            clock.monotonic_s += {"tick": 0.0625, "second": 1.0}.get(step, 0.0)
        told, true = json.loads(body.text()), json.loads(msgspec.json.encode(health(life), enc_hook=str))
        assert told == true
        assert list(told) == list(true)
