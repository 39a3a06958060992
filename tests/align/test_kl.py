from __future__ import annotations

import pytest
import torch

from jielong.align.kl import AdaptiveKL, FixedKL, build_controller, k1, k3


def test_estimates_by_hand() -> None:
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    assert k1(policy, reference).tolist() == pytest.approx([0.693147, -0.693147], abs=1e-5)
    assert k3(policy, reference).tolist() == pytest.approx([0.5 - 1 + 0.693147, 2 - 1 - 0.693147], abs=1e-5)


def test_both_estimates_have_the_true_kl_as_their_mean() -> None:
    """Item 29, exactly: expectation over a distribution of three tokens."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    true = float((policy * (policy / reference).log()).sum())
    for estimate in (k1, k3):
        assert float((policy * estimate(policy.log(), reference.log())).sum()) == pytest.approx(true, abs=1e-6)


def test_adaptive_coefficient_by_hand() -> None:
    """Item 35."""
    controller = AdaptiveKL(0.1, target=5.0, horizon_episodes=1000)
    controller.update(5.5, 100)  # error .1
    assert controller.coefficient == pytest.approx(0.1 * 1.01)
    controller.update(500.0, 100)  # error clipped to .2
    assert controller.coefficient == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(0.0, 100)  # and to -.2
    assert controller.coefficient == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


def test_adaptive_coefficient_finds_the_target() -> None:
    """Item 35: in a world where kl = 1 / coefficient, it must settle at 1 / target."""
    controller = AdaptiveKL(1.0, target=4.0, horizon_episodes=1000)
    for _ in range(400):
        controller.update(1 / controller.coefficient, 100)
    assert controller.coefficient == pytest.approx(0.25, rel=0.01)


def test_fixed_coefficient_stays() -> None:
    controller = build_controller(0.05, None, 10)
    controller.update(100.0, 64)
    assert isinstance(controller, FixedKL) and controller.coefficient == 0.05
    assert isinstance(build_controller(0.05, 6.0, 10), AdaptiveKL)
