from calibration.allocator.repeated_steps import step_bounds, with_steps
from calibration.allocator.stream import Allocation, Phase, Stream
from profiles.overheads import MIB


def training(steps: int, evaluation: bool = False) -> Stream:
    """A run as a trace records it: states of the optimizer from the first step on, the loss of a step until the next.

    In each step the saved tensor goes in the backward pass, the gradient at the end of the step.
    """
    stream = Stream()
    loss = None

    def takes(phase: Phase, num_mib: int, name: str) -> int:
        stream.begin(phase)
        return stream.allocate(Allocation(num_mib * MIB, name, "", phase, "temporary"))

    takes("load", 100, "weight")
    for step in range(steps):
        saved = takes("forward", 40, "saved")
        previous, loss = loss, takes("forward", 1, "loss")
        if previous is not None:
            stream.free(previous)
        gradient = takes("backward", 10, "gradient")
        stream.free(saved)
        if step == 0:
            takes("step", 20, "state")
        scratch = takes("step", 10, "scratch")
        stream.free(scratch)
        stream.free(gradient)
    if evaluation:
        logits = takes("evaluation", 200, "logits")
        stream.free(logits)
        assert loss is not None
        stream.free(loss)
    return stream


def live(stream: Stream) -> list[tuple[Phase, int]]:
    """Bytes alive after each event, with its phase."""
    now, counts = 0, []
    for event, phase in stream.phase_of_events():
        now += stream.allocations[event].bytes if event >= 0 else -stream.allocations[~event].bytes
        counts.append((phase, now))
    return counts


def test_a_step_lasts_from_the_forward_pass_to_the_end_of_the_optimizer_step():
    stream = training(2, evaluation=True)
    bounds = step_bounds(stream)
    assert [stream.phases[1][0], stream.phases[4][0]] == [start for start, _ in bounds]
    assert bounds[0][1] == bounds[1][0]
    assert stream.phases[-1] == (bounds[1][1], "evaluation")


def test_micro_batches_are_one_step():
    stream = Stream()
    for phase in ("load", "forward", "backward", "forward", "backward", "step"):
        stream.begin(phase)
        stream.free(stream.allocate(Allocation(MIB, "", "", phase, "temporary")))
    assert step_bounds(stream) == [(2, 12)]


def test_repeated_steps_are_those_that_more_tracing_records():
    assert live(with_steps(training(2), 5)) == live(training(5))


def test_what_follows_the_steps_still_does():
    assert live(with_steps(training(2, evaluation=True), 4)) == live(training(4, evaluation=True))


def test_states_of_the_optimizer_are_there_once_also_if_one_step_was_traced():
    repeated = live(with_steps(training(1), 4))
    assert repeated[-1] == live(training(4))[-1]
    assert max(repeated) <= max(live(training(4)))


def test_a_stream_with_enough_steps_stays_as_it_is():
    stream = training(3)
    assert with_steps(stream, 2) is stream


def test_every_allocation_ends_at_most_once_and_after_it_began():
    stream = with_steps(training(2, evaluation=True), 6)
    alive = set()
    for event in stream.events:
        if event >= 0:
            assert event not in alive
            alive.add(event)
        else:
            alive.remove(~event)
