"""Scaling of columns: robust estimates, columns that never vary, missing and impossible values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from scorer.errors import BadParameter, BadRows
from scorer.features import RobustScaler


def test_scales_like_standard_deviations_in_spite_of_outliers():
    """A tenth of the rows far out hardly moves center and scale of a normal column."""
    rows = np.random.default_rng(0).normal(5.0, 2.0, size=(5000, 1))
    rows[:250] = 1e6
    rows[250:500] = -1e6
    scaler = RobustScaler.fit(rows)
    assert scaler.center[0] == pytest.approx(5.0, abs=0.1)
    assert scaler.scale[0] == pytest.approx(2.0, rel=0.2)
    assert scaler.transform([[7.0]])[0, 0] == pytest.approx(1.0, abs=0.2)
    assert scaler.inverse_transform(scaler.transform([[7.0]]))[0, 0] == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("values", "center", "scale"),
    [
        ([1.0, 2.0, 3.0, 4.0, 100.0], 3.0, 1.4826),  # MAD
        ([0.0] * 60 + [4.0] * 40, 0.0, 4.0 / 1.349),  # MAD 0: IQR
        ([0.0] * 96 + [10.0] * 4, 0.0, math.sqrt(0.04 * 0.96) * 10.0),  # IQR 0: standard deviation
        ([518.67] * 50, 518.67, 5.1867),  # constant: 1 % of its magnitude
        ([0.0] * 50, 0.0, 1.0),  # constant 0
        ([100.0, 100.0 + 1e-12] * 25, 100.0, 1.0),  # rounding is not variation
        ([math.nan, 3.0, math.inf, 3.0], 3.0, 0.03),  # estimates leave out what is no number
        ([1e308, -1e308, 1e308, -1e308], 0.0, 1.4826e308),  # no overflow
    ],
)
def test_which_scale_a_column_gets(values, center, scale):
    """Each rung of the ladder: MAD, IQR, standard deviation, constant."""
    scaler = RobustScaler.fit(np.array(values).reshape(-1, 1))
    assert scaler.center[0] == pytest.approx(center, abs=1e-9)
    assert scaler.scale[0] == pytest.approx(scale, rel=1e-6)


def test_constant_column_keeps_its_place_and_shows_its_first_change():
    """All training values give 0; a change by a tenth is ten deviations."""
    scaler = RobustScaler.fit(np.full((20, 1), 50.0))
    assert scaler.transform([[50.0], [55.0]]).tolist() == [[0.0], [10.0]]


def test_missing_and_impossible_values():
    """NaN stays; an infinity and anything beyond becomes the bound; a column without values is missing for good."""
    scaler = RobustScaler.fit([[0.0, math.nan], [1.0, math.inf], [2.0, math.nan]], clip=50.0)
    found = scaler.transform([[math.nan, 1.0], [math.inf, 2.0], [-math.inf, 3.0], [1e308, 4.0]])
    assert np.isnan(found[0, 0])
    assert found[1:, 0].tolist() == [50.0, -50.0, 50.0]
    assert np.isnan(found[:, 1]).all()


def test_round_trip_through_json_is_exact():
    """The parameters survive JSON bit for bit, a column without values included."""
    rows = np.random.default_rng(1).normal(size=(30, 4)) * [1e-3, 1.0, 1e9, math.nan]
    scaler = RobustScaler.fit(rows)
    again = RobustScaler.from_dict(json.loads(json.dumps(scaler.to_dict(), allow_nan=False)))
    assert again.transform(rows).tobytes() == scaler.transform(rows).tobytes()


def test_parameters_cannot_be_changed_behind_its_back():
    """The arrays are copies and read-only."""
    center = np.zeros(2)
    scaler = RobustScaler(center, np.ones(2))
    center[0] = 9.0
    assert scaler.center[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        scaler.scale[0] = 2.0


def test_bad_input_is_refused():
    """No rows, other columns, text, scales of 0, a clip of 0."""
    with pytest.raises(BadRows, match="no rows"):
        RobustScaler.fit(np.zeros((0, 2)))
    with pytest.raises(BadRows, match="3 columns where 2"):
        RobustScaler.fit(np.zeros((4, 2))).transform(np.zeros((1, 3)))
    with pytest.raises(BadRows, match="not numbers"):
        RobustScaler.fit([["x"]])
    for center, scale, clip in [
        ([0.0], [0.0], 10.0),
        ([0.0], [1.0, 1.0], 10.0),
        ([math.inf], [1.0], 10.0),
        ([0.0], [1.0], 0.0),
    ]:
        with pytest.raises(BadParameter):
            RobustScaler(np.array(center), np.array(scale), clip)
