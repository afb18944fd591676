"""Guided integration against closed forms, a rewrite with autograd, and plain integration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlad_engines.model.flow import euler_path, euler_schedule
from vlad_engines.model.guided_flow import FlowGuidance, guided_path
from vlad_engines.processing.guidance import guidance_gains, prefix_weights

HORIZON, WIDTH = 8, 3


def make_guidance(steps: int, beta: float | None = None, frozen: int = 0, batch: int = 1) -> FlowGuidance:
    weights = torch.from_numpy(prefix_weights("exp", 2, 6, HORIZON)).float()
    gains = torch.from_numpy(guidance_gains(euler_schedule(steps).times, steps if beta is None else beta))
    return FlowGuidance(
        weights=(weights * (frozen == 0))[:, None].repeat(batch, 1, WIDTH),
        target=torch.randn(batch, HORIZON, WIDTH, generator=torch.Generator().manual_seed(1)),
        gains=gains.repeat(batch, 1),
        frozen=torch.full((batch,), frozen, dtype=torch.int32),
    )


def noise(batch: int = 1) -> Tensor:
    return torch.randn(batch, HORIZON, WIDTH, generator=torch.Generator().manual_seed(2))


class Network:
    """A velocity in which every action depends on every other."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.mix = torch.randn(HORIZON * WIDTH, HORIZON * WIDTH, generator=generator) / 5

    def __call__(self, step: int, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.mix + step / 10).view_as(x)


def last(path: object) -> Tensor:
    *_, actions = path  # type: ignore[misc]
    assert isinstance(actions, Tensor)
    return actions


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_without_weights_and_frozen_actions_every_step_is_plain_bit_by_bit(steps: int) -> None:
    guidance = make_guidance(steps)._replace(weights=torch.zeros(1, HORIZON, WIDTH))
    schedule, start = euler_schedule(steps), noise()
    start[0, 0, 0] = -0.0
    still = lambda step, x: torch.where(x == 0, -0.0, torch.tanh(x))  # noqa: E731
    guided = list(guided_path(still, start, schedule, guidance))
    for one, other in zip(guided, euler_path(still, start, schedule), strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_an_action_of_weight_zero_takes_no_infinity_from_the_target() -> None:
    guidance = make_guidance(5)
    guidance.target[0, 6:] = torch.inf
    assert last(guided_path(Network(), noise(), euler_schedule(5), guidance)).isfinite().all()


@pytest.mark.parametrize(("steps", "reached"), [(5, 0.85), (10, 0.9111)])
def test_a_certain_denoiser_ends_between_its_actions_and_the_target(steps: int, reached: float) -> None:
    """With v = (x - c) / t the expected actions are c at every step: the last gain alone decides."""
    schedule, guidance = euler_schedule(steps), make_guidance(steps)
    certain = torch.randn(1, HORIZON, WIDTH, generator=torch.Generator().manual_seed(4))
    actions = last(
        guided_path(lambda step, x: (x - certain) / schedule.times[step], noise(), schedule, guidance)
    )
    expected = certain + reached * guidance.weights * (guidance.target - certain)
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [3, 10])
def test_identity_mode_is_autograd_after_a_detached_forward_pass(steps: int) -> None:
    """The order of LeRobot: the input wants gradients only after the network has run."""
    network, schedule, guidance = Network(), euler_schedule(steps), make_guidance(steps, beta=7.0)
    x = noise()
    for index, time in enumerate(schedule.times):
        with torch.no_grad():
            v = network(index, x)
        x = x.clone().requires_grad_()
        expected = x - time * v
        error = (guidance.target - expected).detach() * guidance.weights
        correction = torch.autograd.grad(expected, x, error)[0]
        x = (x - (v - guidance.gains[0, index] * steps * correction) / steps).detach()
    actions = last(guided_path(network, noise(), schedule, guidance))
    torch.testing.assert_close(actions, x, rtol=1e-5, atol=1e-5)


def test_vjp_mode_multiplies_with_the_whole_jacobian() -> None:
    steps = 4
    network, schedule, guidance = Network(), euler_schedule(steps), make_guidance(steps)
    x = noise()
    for index, time in enumerate(schedule.times):

        def expect(x: Tensor, index: int = index, time: float = time) -> Tensor:
            return x - time * network(index, x)

        error = (guidance.weights * (guidance.target - expect(x))).flatten()
        jacobian = torch.autograd.functional.jacobian(expect, x).view(error.numel(), error.numel())
        correction = (jacobian.T @ error).view_as(x)
        x = x + schedule.step * network(index, x) + guidance.gains[0, index] * correction
    actions = last(guided_path(network, noise(), schedule, guidance, through_network=True))
    torch.testing.assert_close(actions, x, rtol=1e-5, atol=1e-5)
    identity = last(guided_path(network, noise(), schedule, guidance))
    assert (actions - identity).abs().max() > 0.05


@pytest.mark.parametrize("through_network", [False, True])
def test_columns_without_weight_are_not_corrected(through_network: bool) -> None:
    """One step, so that what the network makes of corrected columns cannot come back."""
    guidance = make_guidance(1)
    guidance.weights[:, :, 2] = 0
    schedule = euler_schedule(1)
    guided = last(guided_path(Network(), noise(), schedule, guidance, through_network=through_network))
    plain = last(euler_path(Network(), noise(), schedule))
    assert torch.equal(guided[..., 2], plain[..., 2])
    assert not torch.allclose(guided[..., :2], plain[..., :2], atol=1e-2)


def test_frozen_actions_are_the_target_whenever_the_network_looks() -> None:
    guidance, seen = make_guidance(4, frozen=3), []

    def velocity(step: int, x: Tensor) -> Tensor:
        seen.append(x)
        return Network()(step, x)

    path = list(guided_path(velocity, noise(), euler_schedule(4), guidance))
    for x in (*seen, *path):
        assert torch.equal(x[:, :3], guidance.target[:, :3])
    free = last(euler_path(Network(), noise(), euler_schedule(4)))
    assert not torch.allclose(path[-1][:, 3:], free[:, 3:], atol=1e-3)


def test_samples_of_a_batch_are_guided_each_by_its_own() -> None:
    guidance = make_guidance(4, batch=2)
    guidance.weights[1] = 0
    guidance.gains[0] /= 2
    actions = last(guided_path(Network(), noise(2), euler_schedule(4), guidance))
    alone = FlowGuidance(*(part[:1] for part in guidance))
    torch.testing.assert_close(
        actions[:1], last(guided_path(Network(), noise(2)[:1], euler_schedule(4), alone))
    )
    torch.testing.assert_close(actions[1:], last(euler_path(Network(), noise(2)[1:], euler_schedule(4))))
