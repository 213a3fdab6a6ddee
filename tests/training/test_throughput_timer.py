"""Seconds of a run and images per second, with pauses that count for one and not for the other."""

from mtgen.training.throughput_timer import ThroughputTimer


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def started(seconds: float = 0.0, images: int = 0, waited: float = 0.0) -> tuple[ThroughputTimer, Clock]:
    clock = Clock()
    timer = ThroughputTimer(seconds, clock)
    clock.now += 7  # setting up takes time, which does not count
    timer.start(images, waited)
    return timer, clock


def test_seconds_count_from_the_start_and_include_earlier_parts_of_the_run() -> None:
    timer, clock = started(seconds=60.0)
    assert timer.seconds == 60.0
    clock.now += 5
    assert timer.seconds == 65.0


def test_a_lap_is_images_per_second_and_the_fraction_waited_since_the_last_lap() -> None:
    timer, clock = started(images=400, waited=2.0)
    clock.now += 4
    assert timer.lap(600, 3.0) == (50.0, 0.25)
    clock.now += 2
    assert timer.lap(800, 3.0) == (100.0, 0.0)


def test_a_pause_counts_for_the_seconds_of_the_run_but_not_for_its_speed() -> None:
    timer, clock = started()
    clock.now += 1
    timer.pause()
    clock.now += 10
    assert timer.resume() == 10.0
    clock.now += 1
    assert timer.seconds == 12.0
    assert timer.lap(100, 0.0).images_per_second == 50.0


def test_several_pauses_in_a_lap_add_up_and_do_not_reach_the_next_lap() -> None:
    timer, clock = started()
    for _ in range(3):
        clock.now += 1
        timer.pause()
        clock.now += 10
        timer.resume()
    assert timer.lap(300, 0.0).images_per_second == 100.0
    clock.now += 2
    assert timer.lap(500, 0.0).images_per_second == 100.0


def test_a_lap_of_no_time_is_finite() -> None:
    timer, _ = started()
    assert timer.lap(0, 0.0) == (0.0, 0.0)
