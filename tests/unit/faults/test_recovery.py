"""How long daemons needed after a fault, from what was recorded."""

from __future__ import annotations

from tests.faults.records import Fault, Process, Publish, Recording, TaskChange
from tests.faults.recovery import percentile, recoveries


def a_recording(*faults: tuple[int, float, float, str], successes: dict[str, list[float]]) -> Recording:
    """Faults as number, begin, end and target; successes by place."""
    recording = Recording()
    recording.add(Publish(kind="invoke", number=1, at=1e6))
    for number, begun, healed, target in faults:
        recording.add(Fault(phase="begun", number=number, kind="k", target=target, at=begun))
        recording.add(Fault(phase="healed", number=number, kind="k", target=target, at=healed))
    for place, times in successes.items():
        recording.add(Process(kind="began", process=f"{place}.1", worker=f"id-{place}"))
        for at in times:
            recording.add(
                TaskChange(
                    key=1,
                    queue="q",
                    name="n",
                    id="i",
                    old_state="running",
                    new_state="succeeded",
                    new_worker=f"id-{place}",
                    committed_at=at,
                )
            )
    return recording


def waits(recording: Recording) -> dict[int, float]:
    return {each.fault.number: each.seconds for each in recoveries(recording)}


def test_a_fault_of_one_place_is_over_when_that_place_succeeds() -> None:
    recording = a_recording((1, 10, 20, "worker-1.3"), successes={"worker-1": [5, 23], "worker-2": [20.1]})

    assert waits(recording) == {1: 3}


def test_a_fault_of_all_is_over_when_the_slowest_place_succeeds() -> None:
    recording = a_recording((1, 10, 20, "broker"), successes={"worker-1": [23], "worker-2": [21]})

    assert waits(recording) == {1: 3}


def test_time_in_which_something_else_is_broken_does_not_count() -> None:
    recording = a_recording(
        (1, 10, 20, "worker-1.1"), (2, 18, 30, "broker"), (3, 19, 99, "worker-2.1"),
        successes={"worker-1": [34], "worker-2": [100]},
    )  # fmt: skip

    assert waits(recording) == {1: 4, 2: 4, 3: 1}


def test_a_fault_of_the_publisher_is_nobodys() -> None:
    assert waits(a_recording((1, 10, 20, "publisher"), successes={"worker-1": [23]})) == {}


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(each) for each in range(100)]

    assert (percentile(values, 0.5), percentile(values, 0.95), percentile(values, 1.0)) == (50, 95, 99)
    assert percentile([], 0.5) is None
