"""Temperature scaling against a search over a grid, calibration errors against a count by hand."""

import math

import numpy as np
import pytest
import torch

from conformer_vision.inference import calibration
from conformer_vision.inference.calibration import BINS, calibrate, fit_temperature, reliability


def answers(n: int, k: int, temperature: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose probabilities are right at one temperature."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (n, k))
    p = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=k - 1)
    return torch.tensor(true * temperature, dtype=torch.float32), torch.tensor(labels)


def nll(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    z = logits.double().numpy() / temperature
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels.numpy()]))


def ece(confidence: np.ndarray, right: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, one bin after the other; the last includes 1."""
    total = 0.0
    for i in range(BINS):
        last = i == BINS - 1
        inside = (confidence >= i / BINS) & ((confidence < (i + 1) / BINS) | last)
        if inside.any():
            total += inside.sum() / len(confidence) * abs(confidence[inside].mean() - right[inside].mean())
    return total


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.5])
@pytest.mark.parametrize("k", [2, 10])
def test_temperature_is_the_minimum(temperature: float, k: int) -> None:
    logits, labels = answers(3000, k, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.15)
    grid = np.geomspace(0.05, 20, 400)
    best = min(grid, key=lambda t: nll(logits, labels, t))
    assert nll(logits, labels, found) <= nll(logits, labels, best) + 1e-6
    assert found == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize("scale", [1.0, 30.0])  # of 30 most probabilities are exactly 1 in float32
def test_reliability_against_a_count_by_hand(scale: float) -> None:
    logits, labels = answers(700, 6, 1.0)
    logits = logits * scale
    measured = reliability(logits, labels, torch.ones(700))
    p = logits.softmax(dim=1)
    confidence, right = p.max(dim=1).values.numpy(), (p.argmax(dim=1) == labels).numpy()
    assert measured.ece == pytest.approx(ece(confidence, right), abs=1e-5)
    assert measured.nll == pytest.approx(nll(logits, labels, 1.0), rel=1e-5)
    assert sum(b.count for b in measured.bins) == 700
    gaps = sum(b.count / 700 * abs(b.accuracy - b.confidence) for b in measured.bins)
    assert measured.ece == pytest.approx(gaps, abs=1e-5)
    for b in measured.bins:
        assert not b.count or b.low <= b.confidence <= b.high
        inside = (confidence >= b.low) & (confidence < b.high)
        if b.count and b.high < 1:
            assert (b.count, b.accuracy) == (inside.sum(), pytest.approx(right[inside].mean()))


def test_each_half_is_measured_at_the_temperature_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = answers(400, 5, 4.0)
    logits[:, 0] += torch.arange(400) * 1e-4  # every row its own
    fitted: list[torch.Tensor] = []

    def fit(some: torch.Tensor, truth: torch.Tensor) -> float:
        fitted.append(some)
        return {1: 2.0, 2: 3.0, 3: 5.0}[len(fitted)]

    monkeypatch.setattr(calibration, "fit_temperature", fit)
    result = calibrate(logits, labels)
    assert [len(part) for part in fitted] == [200, 200, 400]
    assert result.temperature == 5.0
    in_first = (logits[:, None] == fitted[0][None]).all(dim=2).any(dim=1)
    by_hand = torch.where(in_first, 3.0, 2.0)  # the first half is measured at the second's
    expected = np.mean([nll(logits[i : i + 1], labels[i : i + 1], float(by_hand[i])) for i in range(400)])
    assert result.after is not None
    assert result.after.nll == pytest.approx(expected, rel=1e-5)
    right = logits.argmax(dim=1) == labels
    assert abs(int(right[in_first].sum()) - int(right[~in_first].sum())) <= 1


def test_an_overconfident_model_gets_better() -> None:
    result = calibrate(*answers(2000, 5, 3.0))
    assert result.temperature == pytest.approx(3.0, rel=0.15)
    assert result.after is not None and result.note is None
    assert result.after.ece < result.before.ece / 2
    assert result.after.nll < result.before.nll
    assert calibrate(*answers(2000, 5, 3.0)) == result


ALL_RIGHT = (torch.eye(4).repeat(20, 1) * 3, torch.arange(4).repeat(20))


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        (*answers(10, 3, 1.0), "too few"),
        (*answers(1, 3, 1.0), "too few"),
        (*ALL_RIGHT, "0 of 80 answers are wrong"),
        (ALL_RIGHT[0], (ALL_RIGHT[1] + 1) % 4, "80 of 80 answers are wrong"),
        (ALL_RIGHT[0], ALL_RIGHT[1] * 0, "one class"),
    ],
)
def test_where_no_temperature_can_be_fitted(logits: torch.Tensor, labels: torch.Tensor, reason: str) -> None:
    result = calibrate(logits, labels)
    assert result.temperature == 1.0
    assert result.after is None
    assert result.note is not None and reason in result.note
    assert math.isfinite(result.before.ece) and math.isfinite(result.before.nll)


def test_bounds() -> None:
    logits, labels = ALL_RIGHT[0].clone(), ALL_RIGHT[1].clone()
    logits += torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert fit_temperature(logits, labels) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(logits, (labels + 1) % 4) == pytest.approx(20, rel=1e-3)
    labels[:2] = 3
    assert calibrate(logits * 1000, labels).note == "the temperature is at its bound of 20"
