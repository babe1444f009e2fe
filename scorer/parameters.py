"""Parameters of a forest: ranges, and the names that other systems use for them.

Owns what may be given. Never keeps a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from scorer.errors import BadParameter

RANGES = {
    "trees": (1, 1000),
    "samples": (10, 2048),
    "time_decay": (1, 2**31 - 1),
    "shingle": (1, 128),
    "output_after": (1, 2**31 - 1),
    "columns": (1, 65_535),  # cut_dim is 16 bits wide
    "seed": (0, 2**63 - 1),
    "threads": (1, 64),
}
POLICIES = ("gated", "streaming", "frozen")

# Amazon Kinesis (SQL function), Amazon SageMaker, the AWS random cut forest library in Java and in Rust.
ALIASES = {
    "numberOfTrees": "trees",
    "number_of_trees": "trees",
    "num_trees": "trees",
    "subSampleSize": "samples",
    "sampleSize": "samples",
    "sample_size": "samples",
    "num_samples_per_tree": "samples",
    "timeDecay": "time_decay",
    "shingleSize": "shingle",
    "shingle_size": "shingle",
    "outputAfter": "output_after",
    "initialAcceptFraction": "initial_accept_fraction",
    "feature_dim": "columns",
    "dimensions": "columns",
    "withDirectionality": "with_directionality",
    "randomSeed": "seed",
    "random_seed": "seed",
    "threadPoolSize": "threads",
    "ignoreNearExpectedFromAbove": "ignore_above",
    "ignoreNearExpectedFromBelow": "ignore_below",
    "ignoreNearExpectedFromAboveByRatio": "ignore_above_share",
    "ignoreNearExpectedFromBelowByRatio": "ignore_below_share",
    "anomalyRate": "anomaly_rate",
}


def check_whole(name: str, value: object) -> int:
    """The value as int.

    Raises:
        BadParameter: it is no whole number, or outside the range of `name`.
    """
    low, high = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise BadParameter(f"{name} must be a whole number, not {value!r}.", hint=f"Give {low} to {high}.", parameter=name)
    if not low <= value <= high:
        raise BadParameter(f"{name} is out of range: {value}.", hint=f"Give {low} to {high}.", parameter=name)
    return int(value)


def check_share(name: str, value: object) -> float:
    """The value as float above 0 and up to 1.

    Raises:
        BadParameter: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0.0 < value <= 1.0:
        raise BadParameter(f"{name} must be a number above 0 and up to 1, not {value!r}.", parameter=name)
    return float(value)


def check_positive(name: str, value: object) -> float:
    """The value as float, finite and above 0.

    Raises:
        BadParameter: it is not.
    """
    good = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not good or not math.isfinite(float(value)) or float(value) <= 0.0:  # type: ignore[arg-type]
        raise BadParameter(f"{name} must be a finite number above 0, not {value!r}.", parameter=name)
    return float(value)  # type: ignore[arg-type]


def translate(given: Mapping[str, Any], also: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Parameters under this project's names, those of a forest and `also`; names of other systems are translated.

    Raises:
        BadParameter: an unknown name, or one parameter given twice.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        ours = ALIASES.get(name, name)
        if ours not in KNOWN | also:
            raise BadParameter(f"Unknown parameter {name}.", hint=f"Known: {', '.join(sorted(KNOWN | also))}.", parameter=name)
        if ours in found:
            raise BadParameter(f"{ours} is given twice, once as {name}.", hint="Give one of them.", parameter=ours)
        found[ours] = value
    return found


KNOWN = frozenset(RANGES) | {"initial_accept_fraction", "policy", "gate_sigma", "with_directionality"}

# Of `scorer.detector`, besides a forest's.
DETECTOR_NAMES = frozenset(
    {
        "scale",
        "baseline_rows",
        "threshold",
        "threshold_value",
        "anomaly_rate",
        "ignore_above",
        "ignore_below",
        "ignore_above_share",
        "ignore_below_share",
        "direction",
    }
)
