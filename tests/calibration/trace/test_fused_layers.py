import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from calibration.trace.fused_layers import FusedRMSNorm, FusedRotary, fused_layers  # noqa: E402
from planner.step.step_spec import StepSpec  # noqa: E402

pytestmark = pytest.mark.slow


class TinyRMSNorm(nn.Module):
    def forward(self, x):
        return x.float().pow(2).to(x.dtype)


def saved_by(function, x):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = function(x)
    return out, saved


def test_a_fused_norm_keeps_its_input_and_a_number_a_row():
    x = torch.randn(2, 3, 8, dtype=torch.bfloat16, requires_grad=True)
    out, saved = saved_by(FusedRMSNorm.apply, x)
    assert [tuple(t.shape) for t in saved] == [(2, 3, 8), (2, 3)]
    assert saved[0].data_ptr() == x.data_ptr()
    assert out.dtype == torch.bfloat16


def test_a_fused_rotation_takes_no_memory():
    x = torch.randn(2, 3, 4, 8, requires_grad=True)
    out, saved = saved_by(FusedRotary.apply, x)
    assert out.data_ptr() == x.data_ptr()
    assert saved == []


@pytest.mark.parametrize(("kernels", "fused"), [("torch", False), ("foak", True)])
def test_layers_are_fused_where_the_step_has_them_so(kernels, fused):
    model = nn.Sequential(TinyRMSNorm())
    x = torch.randn(2, 8, requires_grad=True)
    with fused_layers(model, StepSpec(1, 8, "bfloat16", kernels=kernels)):
        out = model(x)
    assert type(out.grad_fn).__name__.startswith("FusedRMSNorm") == fused
