"""The machine's own matrix products."""

import pytest
import torch

from conformer_vision.benchmark import ceiling

CPU = torch.device("cpu")


def test_measures_what_is_asked_for_and_float32() -> None:
    rates = ceiling.measure_ceilings(["bf16", "bf16", "int8"], CPU, sizes=(32, 64))
    assert rates.keys() - {"int8"} == {"fp32", "bf16"}
    assert all(rate > 1e5 for rate in rates.values())


def test_int8_that_is_slower_than_float32_is_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"fp32": 10.0, "bf16": 5.0, "int8": 5.0}
    monkeypatch.setattr(ceiling, "_fastest", lambda precision, device, sizes: rates[precision])
    assert ceiling.measure_ceilings(rates, CPU) == {"fp32": 10.0, "bf16": 5.0}  # type: ignore[arg-type]
    rates["int8"] = 20.0
    assert ceiling.measure_ceilings(rates, CPU) == rates  # type: ignore[arg-type]


def test_a_product_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fastest(precision: str, device: torch.device, sizes: object) -> float:
        if precision == "int8":
            raise RuntimeError("not implemented for 'Char'")
        return 1.0

    monkeypatch.setattr(ceiling, "_fastest", fastest)
    assert ceiling.measure_ceilings(["int8"], CPU) == {"fp32": 1.0}
