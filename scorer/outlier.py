"""The forest as an estimator in scikit-learn's sense, for pipelines, grids and metrics made for those.

Owns the translation: orientation (here a **lower** score is more abnormal), offset, contamination. Needs scikit-learn, which
the project itself does not: `pip install scikit-learn`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from scorer.forest import RandomCutForest

Floats = NDArray[np.float64]


class RandomCutOutlier(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Outlier detection with a frozen random cut forest.

    Args:
        trees, samples, seed, threads: as `RandomCutForest`.
        contamination: share of the training rows that `predict` calls outliers, in (0, 0.5]. As everywhere in scikit-learn
            these are scored as known rows; for an honest threshold use `RandomCutForest.fit_score`.

    Attributes:
        forest_: the forest.
        offset_: `decision_function` is `score_samples` less this.
        n_features_in_: columns.
    """

    def __init__(
        self, *, trees: int = 100, samples: int = 256, contamination: float = 0.01, seed: int = 0, threads: int = 1
    ) -> None:
        self.trees = trees
        self.samples = samples
        self.contamination = contamination
        self.seed = seed
        self.threads = threads

    def fit(self, X: Any, y: Any = None) -> RandomCutOutlier:  # noqa: N803
        """Fit the forest and set the threshold. X: shape (n, d), n >= 2; NaN is allowed."""
        rows = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2)
        if not 0.0 < self.contamination <= 0.5:
            raise ValueError(f"contamination must be above 0 and up to 0.5, not {self.contamination!r}.")
        self.forest_ = RandomCutForest(
            trees=self.trees, samples=self.samples, seed=self.seed, threads=self.threads, policy="frozen"
        )
        self.forest_.fit(rows)
        self.offset_ = float(np.percentile(-self.forest_.score_samples(rows), 100.0 * self.contamination))
        return self

    def score_samples(self, X: Any) -> Floats:  # noqa: N803
        """The opposite of the forest's score, shape (n,): lower is more abnormal."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        return -self.forest_.score_samples(rows)

    def decision_function(self, X: Any) -> Floats:  # noqa: N803
        """`score_samples` less `offset_`: below 0 is an outlier."""
        found: Floats = self.score_samples(X) - self.offset_
        return found

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: N803
        """1 for an ordinary row, -1 for an outlier."""
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
