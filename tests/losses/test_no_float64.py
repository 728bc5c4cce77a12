"""The ranking losses on a device without float64: nothing there is float64, and no copy from it converts to float64."""

import pytest
import torch
from no_float64 import DEVICE, OnDevice, Simulated
from ranking_cases import random_batch

from ranksort.losses import _ranking, average_lrp_loss, average_precision_loss, counting, rank_sort_loss

LOSSES = {
    "rank_sort": lambda logits, targets, _: sum(rank_sort_loss(logits, targets)),
    "average_precision": lambda logits, targets, _: average_precision_loss(logits, targets),
    "average_lrp": lambda *batch: sum(average_lrp_loss(*batch)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("numbers", [(5, 40, 3), (20, 5000, 1), (20, 0, 0), (0, 50, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_the_loss_on_a_cpu(name, numbers, dtype, monkeypatch):
    logits, targets = random_batch(*numbers)
    batch = logits.to(dtype), targets.float(), torch.rand(numbers[0], generator=torch.Generator().manual_seed(0))
    expected = batch[0].clone().requires_grad_()
    loss = LOSSES[name](expected, *batch[1:])
    loss.backward()
    for module in (counting, _ranking):
        monkeypatch.setattr(module, "has_float64", lambda device: device != DEVICE)
    with Simulated():
        there = [OnDevice(x) for x in batch]
        there[0].requires_grad_()
        found = LOSSES[name](*there)
        found.backward()
        found, gradient = found.detach().cpu(), there[0].grad.cpu()
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(gradient, expected.grad)


def test_the_simulation_refuses_what_such_devices_refuse():
    with Simulated():
        there = OnDevice(torch.ones(3))
        for wrong in (
            there.double,
            lambda: there.to("cpu", torch.float64),
            lambda: there.new_zeros(3, dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="float64"):
                wrong()
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        assert (there + torch.tensor(1.0)).cpu().double().tolist() == [2, 2, 2]
