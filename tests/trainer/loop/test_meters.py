import pytest

pytestmark = pytest.mark.slow


def test_a_resumed_run_counts_the_states_that_it_begins_with():
    import torch

    from trainer.loop.meters import CpuMemory

    model = torch.nn.Linear(256, 256, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    memory = CpuMemory()
    memory.on_train_begin(None, None, None, model=model, optimizer=optimizer)
    memory.open()
    memory.close()
    weights = 256 * 256 * 4
    assert memory.phases["load"] == weights
    # Two moments and the number of the step.
    assert memory.allocated_bytes == 3 * weights + memory.phases["step"] % weights
    assert memory.phases["step"] % weights < 1024
