"""The whole way under a plant's load, undisturbed, and with both services killed at random moments."""

import random
import time

import pytest

from tests.fixtures.load import Load, assert_all_is_right, start_services, wait_until_scored
from tests.fixtures.pipeline import Pipeline, Service

KILLS = 3
UNDISTURBED_ROWS = 8_000


def restart(pipeline: Pipeline, services: dict[str, Service], name: str) -> None:
    """Kill -9, and start again as a supervisor would."""
    services[name].kill()
    services[name] = pipeline.start(name, "run")


def test_load(pipeline: Pipeline) -> None:
    """8,000 rows while the services run: both sides equal, every row scored once."""
    load = Load(pipeline, seed=1, rows=UNDISTURBED_ROWS)
    load.configure()
    services = start_services(pipeline)
    load.start()
    load.finish()
    wait_until_scored(pipeline)
    assert load.updated > 20
    assert load.deleted > 5
    for name, service in services.items():
        assert service.stop() == 0, f"{name}: {service.read_log()}"
    assert_all_is_right(pipeline)


@pytest.mark.both
def test_load_with_killed_services(pipeline: Pipeline) -> None:
    """The same with 20,631 rows, and kill -9 of replicator and scorer in turn, at moments drawn from a seed."""
    moments = random.Random(7)
    load = Load(pipeline, seed=2, pause_s=0.02)
    load.configure()
    services = start_services(pipeline)
    load.start()
    for _ in range(KILLS):
        for name in ("replicator", "scorer"):
            work = (
                "SELECT coalesce(max(seq), 0) FROM warehouse.checkpoint"
                if name == "replicator"
                else "SELECT count(*) FROM scores"
            )
            before = pipeline.fetch(work)[0][0]
            # Not before it is at work again; then at any moment.
            pipeline.wait_until(lambda work=work, before=before: not load.is_alive() or pipeline.fetch(work)[0][0] > before)  # type: ignore[misc]
            time.sleep(moments.random() * 0.3)
            restart(pipeline, services, name)
    load.finish()
    wait_until_scored(pipeline)
    for name, service in services.items():
        assert service.stop() == 0, f"{name}: {service.read_log()}"
    assert_all_is_right(pipeline)
