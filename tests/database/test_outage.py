"""What is said of failures in a row, and how long each waits: a table, without a clock."""

from orchestrator.database.connect_errors import Failure
from orchestrator.database.outage import Outage


def failure(cause):
    return Failure(cause, "transient", "")


def test_the_first_failure_is_news_and_each_change_of_its_cause_and_one_every_half_minute():
    now = 1000.0
    outage = Outage(monotonic=lambda: now)
    told = []
    for at, cause in ((0, "refused"), (1, "refused"), (2, "closed"), (31, "closed"), (32, "closed"), (33, "refused")):
        now = 1000.0 + at
        told.append(outage.failed(failure(cause)))
    assert told == [True, False, True, False, True, True]


def test_waits_double_up_to_their_limit_and_begin_anew_when_it_is_over():
    outage = Outage(least_s=0.05, most_s=1.0)
    waits = []
    for _ in range(7):
        outage.failed(failure("refused"))
        waits.append(outage.wait_s)
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert (outage.over(), outage.over()) == (7, 0)
    assert outage.failed(failure("refused"))
    assert outage.wait_s == 0.05
