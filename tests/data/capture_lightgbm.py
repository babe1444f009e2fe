"""Trains small models with LightGBM and keeps what it writes and what it predicts: `python -m tests.data.capture_lightgbm`.

The tests read the file, so they need no LightGBM (whose wheel needs an OpenMP library of the system). Run it again, after
`pip install lightgbm`, when another version is to be covered.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).parent / "lightgbm.json.gz"
CASES: dict[str, tuple[dict[str, Any], str, float]] = {
    "binary": ({"objective": "binary"}, "binary", 0.1),
    "missing is zero": ({"objective": "binary", "use_missing": False}, "binary", 0.1),
    "zero is missing": ({"objective": "binary", "zero_as_missing": True}, "binary", 0.1),
    "categories": ({"objective": "binary", "sigmoid": 0.5}, "categories", 0.0),
    "multiclass": ({"objective": "multiclass", "num_class": 3}, "classes", 0.1),
    "multiclassova": ({"objective": "multiclassova", "num_class": 3}, "classes", 0.0),
    "regression": ({"objective": "regression"}, "number", 0.1),
    "poisson": ({"objective": "poisson"}, "binary", 0.0),
    "random forest": (
        {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
        "binary",
        0.0,
    ),
}


def main() -> None:
    """Write the file."""
    import lightgbm

    from tests.unit.test_decisions import make_data

    found = {}
    for name, (parameters, kind, missing) in CASES.items():
        X, y, asked = make_data("binary" if kind == "categories" else kind, missing)
        categories: Any = "auto"
        if kind == "categories":
            categories = [4]
            for values in (X, asked):
                values[:, 4] = np.floor(np.abs(values[:, 4]) * 9)
            y = np.isin(X[:, 4], [1, 2, 5, 7, 11]).astype(int)
            asked[:20, 4] = np.resize([-1.0, -0.5, 0.0, 1.5, 40.0, 5.0], 20)
        asked = asked[::4]
        settings = {"verbose": -1, "num_leaves": 6, "min_data_in_leaf": 5, "min_data_per_group": 5, "cat_smooth": 1, "seed": 1}
        booster = lightgbm.train(settings | parameters, lightgbm.Dataset(X, y, categorical_feature=categories), 5)
        found[name] = {
            "text": booster.model_to_string(),
            "json": json.dumps(booster.dump_model()),
            "asked": [[None if np.isnan(v) else float(v) for v in row] for row in asked],
            "predicted": booster.predict(asked).reshape(len(asked), -1).tolist(),
        }
    FILE.write_bytes(gzip.compress(json.dumps({"version": lightgbm.__version__, "cases": found}).encode(), mtime=0))


if __name__ == "__main__":
    main()
