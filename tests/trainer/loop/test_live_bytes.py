import pytest

pytestmark = pytest.mark.slow

KIB = 1024


@pytest.fixture
def live():
    from trainer.loop.live_bytes import LiveBytes

    return LiveBytes()


def test_a_tensor_counts_from_its_birth_to_its_death(live):
    import torch

    with live:
        a = torch.zeros(KIB)
        assert live.now == 4 * KIB
        b = a + 1
        assert live.now == 8 * KIB
        del a
        assert live.now == 4 * KIB
        del b
    assert (live.now, live.peak) == (0, 8 * KIB)


def test_views_and_work_in_place_cost_nothing(live):
    import torch

    with live:
        a = torch.zeros(KIB)
        views = [a[:10], a.view(32, 32).t(), a.detach()]
        a.add_(1)
        a.requires_grad_()
    assert live.peak == 4 * KIB
    assert len(views) == 3


def test_a_view_keeps_its_storage_alive(live):
    import torch

    with live:
        view = torch.zeros(KIB)[:1]
        assert live.now == 4 * KIB
        del view
        assert live.now == 0


def test_what_is_resized_counts_with_its_size_of_the_moment(live):
    import torch

    a = torch.zeros(KIB)
    with live:
        a.add_(1)
        a.untyped_storage().resize_(0)
        assert live.now == 0
        a.untyped_storage().resize_(4 * KIB)
        assert live.now == 4 * KIB
    a.untyped_storage().resize_(0)
    with live:
        assert live.now == 0


def test_sizes_are_rounded_up_as_cuda_does(live):
    import torch

    with live:
        kept = torch.zeros(1), torch.zeros(129)
    assert live.peak == 512 + 1024
    assert len(kept) == 2


def test_what_existed_before_counts_once_it_is_watched_or_read(live):
    import torch

    weight, other = torch.zeros(KIB), torch.zeros(KIB)
    live.watch([weight, weight.view(32, 32)], "load")
    assert live.peaks == {"load": 4 * KIB}
    with live:
        other.sum()
    assert live.peak == 8 * KIB + 512


def test_the_backward_pass_is_told_from_the_forward_pass(live):
    import torch

    weight = torch.zeros(KIB, requires_grad=True)
    live.watch([weight], "load")
    with live:
        loss = weight.exp().sum()
        loss.backward()
    # The weight, its exponential, the sum, and the gradient of the sum; then the gradient of the weight.
    assert live.peaks["forward"] == 8 * KIB + 1024
    assert live.peaks["backward"] == 12 * KIB + 1024


def test_the_step_of_an_optimizer_is_a_phase(live):
    import torch

    weight = torch.nn.Parameter(torch.zeros(KIB))
    weight.grad = torch.ones(KIB)
    optimizer = torch.optim.AdamW([weight], fused=True)
    live.phase = "step"
    with live:
        optimizer.step()
    # Weight, gradient, two states of its size and the counter of steps.
    assert live.peaks["step"] == 16 * KIB + 512


def test_a_checkpointed_layer_keeps_only_its_input(live):
    import torch
    from torch.utils.checkpoint import checkpoint

    def layer(x):
        return x.exp().sin().exp().sin()

    x = torch.zeros(KIB, requires_grad=True)
    with live:
        kept = layer(x)
    saved_all = live.now
    del kept
    with live:
        kept = checkpoint(layer, x, use_reentrant=False)
        # The input, the output, and a byte of the random state's size.
        assert live.now <= saved_all - 3 * 4 * KIB + 8 * KIB
        kept.sum().backward()
