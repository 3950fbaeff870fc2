from forebay import abc
from forebay._control import FixedController
from forebay._types import Limits, Observation


def test_a_fixed_controller_keeps_its_limits_whatever_it_sees() -> None:
    limits = Limits(batch_size=50, concurrency=3, max_wait=0.1, max_bytes=1000)
    controller: abc.Controller = FixedController(limits)

    calm = Observation(0.0, 50, None, 0.1, False, False, 0, 1, 0.0, 0.0)
    alarm = Observation(9.0, 50, 2000, 30.0, True, True, 10_000, 3, 60.0, 60.0, pressure=1.0)

    assert controller.observe(calm) is limits
    assert controller.observe(alarm) is limits
