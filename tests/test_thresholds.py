"""Scores in order, and the thresholds taken from them, against the definition and by simulation."""

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec
from conformer_vision.thresholds import RejectRule, SetRule, SortedScores, Thresholds

SCORES = SortedScores.of([3.0, 1.0, 2.0])
RULES = Thresholds((RejectRule({"energy": (0.0, 1.0)}, SCORES),), SetRule(SCORES, 0.01, 5), (32, 48))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=400), st.integers(1, 99))
def test_whole_percents_are_exact(scores: list[float], percent: int) -> None:
    """As split conformal prediction: the rank is (n + 1) times the share, rounded to the safe side."""
    share, ordered, images = percent / 100, sorted(scores), len(scores)
    found = SortedScores.of(scores)
    rank = (images + 1) * percent // 100
    assert found.low(share) == (ordered[rank - 1] if rank else -math.inf)
    rank = -(-(images + 1) * (100 - percent) // 100)
    assert found.high(share) == (ordered[rank - 1] if rank <= images else math.inf)


@pytest.mark.parametrize("images", [19, 50, 1234, 20_000])
def test_of_many_scores_few_are_kept_and_other_shares_are_on_the_safe_side(images: int) -> None:
    scores = np.random.default_rng(0).normal(size=images)
    found = SortedScores.of(scores.tolist())
    assert len(found.ranks) == len(found.scores) <= 250
    for share in (0.0123, 0.05, 0.3333, 0.9):
        assert (scores < found.low(share)).mean() <= share
        assert (scores > found.high(share)).mean() <= share
        assert (scores < found.low(share)).mean() >= share - 0.01 - 2 / images


def test_the_share_of_new_scores_is_as_asked_for() -> None:
    """Averaged over fits, as the guarantee says: exchangeable scores, any distribution."""
    rng, share, times, fitted, new = np.random.default_rng(0), 0.1, 500, 60, 40
    below = above = 0
    for _ in range(times):
        found = SortedScores.of(rng.lognormal(size=fitted).tolist())
        scores = rng.lognormal(size=new)
        below += int((scores < found.low(share)).sum())
        above += int((scores > found.high(share)).sum())
    # The exact probability is 6 / 61 for both; new scores of one fit depend on each other.
    spread = math.sqrt(new) * binom.std(times * new, 6 / 61)
    assert abs(below - times * new * 6 / 61) < 3 * spread
    assert abs(above - times * new * 6 / 61) < 3 * spread
    assert max(below, above) / (times * new) < share + 0.01


def test_they_travel_in_the_spec() -> None:
    spec = ModelSpec("test_resnet", {}, ("a", "b"), (3, 32, 48), thresholds=RULES)
    read = ModelSpec.from_json(spec.to_json())
    assert read == spec and read.thresholds == RULES
    older = json.loads(spec.to_json())
    del older["thresholds"]
    assert ModelSpec.from_json(json.dumps(older)).thresholds is None


BAD: dict[str, tuple[list[str | int], Any]] = {
    "no object": ([], 7),
    "no rules": (["reject"], []),
    "a rule that is text": (["reject", 0], "energy"),
    "no signals": (["reject", 0, "signals"], {}),
    "no spread": (["reject", 0, "signals", "energy"], [0.0, 0.0]),
    "a spread that is not a number": (["reject", 0, "signals", "energy"], [0.0, math.nan]),
    "ranks that do not ascend": (["reject", 0, "scores", "ranks"], [1, 1, 2]),
    "ranks beyond the images": (["sets", "scores", "images"], 2),
    "scores that do not ascend": (["sets", "scores", "scores"], [2.0, 1.0, 3.0]),
    "fewer scores": (["sets", "scores", "scores"], [1.0]),
    "infinite scores": (["sets", "scores", "scores"], [1.0, 2.0, math.inf]),
    "a penalty below zero": (["sets", "penalty"], -1),
    "a free rank in part": (["sets", "free"], 0.5),
    "coverage of 1": (["coverage"], 1),
    "coverage as text": (["coverage"], "0.9"),
    "a size of one edge": (["input_size"], [32]),
}


@pytest.mark.parametrize("where", BAD)
def test_damaged_thresholds_are_one_line(where: str) -> None:
    path, value = BAD[where]
    spec: Any = json.loads(ModelSpec("test_resnet", {}, ("a", "b"), thresholds=RULES).to_json())
    part = spec
    for key in ["thresholds", *path[:-1]]:
        last, part = part, part[key]
    if path:
        part[path[-1]] = value
    else:
        last["thresholds"] = value
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        ModelSpec.from_json(json.dumps(spec))


def test_a_missing_key_is_named() -> None:
    spec = json.loads(ModelSpec("test_resnet", {}, ("a", "b"), thresholds=RULES).to_json())
    del spec["thresholds"]["sets"]["penalty"]
    with pytest.raises(UserError, match="penalty"):
        ModelSpec.from_json(json.dumps(spec))


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, math.nan, math.inf, True])
def test_shares_that_cannot_be(share: float) -> None:
    with pytest.raises(UserError, match=r"conformal .*: must be between 0 and 1, both excluded"):
        RULES.sets.threshold(share)


def test_an_error_rate_below_what_the_images_tell() -> None:
    assert RULES.sets.threshold(0.25) == 3.0
    with pytest.raises(UserError, match=r"conformal 0.2: 3 validation images tell no error rate below 0.25"):
        RULES.sets.threshold(0.2)
    assert asdict(RULES)["sets"]["scores"]["images"] == 3
