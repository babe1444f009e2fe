"""Quality of the scores: does the forest, trained on the young engines of a fleet, tell engines near their end from the rest?

`python bench/quality.py [--quick]`. Data: C-MAPSS FD001 at ../shared/data/train_FD001.txt.gz beside the checkout; else a
generated fleet. Every model is trained on cycles 1 to 50 of each engine and asked about later cycles only:

    easy   remaining life <= 30 cycles against > 100: most methods get it right
    hard   remaining life 50 to 90 against > 125: here they differ

Each method sees the same columns, scaled in the same way. `baseline` first takes from each column the engine's own median over
its first 50 cycles. Beside the forest stand scikit-learn's IsolationForest and the trivial sum of |z|.

Then the fleet is replayed in the order of cycles, and the forest is left frozen, or goes on learning: streaming or gated.
Asked: remaining life below 15 cycles against all other rows past cycle 50.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import Report
from scorer import RandomCutForest
from scorer.features import RobustScaler

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "train_FD001.txt.gz"
TRAINING_CYCLES = 50
AIMS = {"fd001_plain_easy": 0.98, "fd001_baseline_hard": 0.80}  # set for the real fleet only
POLICY_AIMS = {"fd001_frozen": 0.98, "fd001_gated": 0.98}
Scores = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three seeds instead of ten")
    seeds = range(3 if parser.parse_args().quick else 10)
    report = Report("Area under the ROC curve, frozen on the first 50 cycles; mean (lowest to highest) over seeds")
    source, rows = load_fleet(report)
    engine, cycle, columns = rows[:, 0], rows[:, 1], rows[:, 2:]
    last_cycle = {unit: cycle[engine == unit].max() for unit in np.unique(engine)}
    remaining = np.array([last_cycle[unit] for unit in engine]) - cycle
    training, asked = cycle <= TRAINING_CYCLES, cycle > TRAINING_CYCLES
    questions = {
        "easy": (asked & (remaining <= 30), asked & (remaining > 100)),
        "hard": (asked & (remaining >= 50) & (remaining <= 90), asked & (remaining > 125)),
    }
    for variant, features in {"plain": columns, "baseline": subtract_baselines(engine, training, columns)}.items():
        scaler = RobustScaler.fit(features[training])
        history, present = scaler.transform(features[training]), scaler.transform(features)
        found = {name: [score(history, present, seed) for seed in seeds] for name, score in METHODS.items()}
        for question, (worn, healthy) in questions.items():
            values = {name: [auc(scores, worn, healthy) for scores in runs] for name, runs in found.items()}
            add_figures(report, f"{source}_{variant}_{question}", values, AIMS.get(f"{source}_{variant}_{question}"))
    measure_policies(report, source, rows, remaining, seeds)
    report.finish()


def measure_policies(report: Report, source: str, rows: np.ndarray, remaining: np.ndarray, seeds: range) -> None:
    """The fleet replayed in the order of cycles, all engines at once: does the forest learn the wear as normal?"""
    order = np.lexsort((rows[:, 0], rows[:, 1]))
    engine, cycle, remaining = rows[order, 0], rows[order, 1], remaining[order]
    young = cycle <= TRAINING_CYCLES
    scaler = RobustScaler.fit(rows[order][young, 2:])
    features = scaler.transform(rows[order][:, 2:])
    found = {}
    for policy in ("frozen", "gated", "streaming"):
        runs = [replay(features, young, engine, policy, seed) for seed in seeds]
        found[policy] = [roc_auc_score(remaining[~young] < 15, scores) for scores in runs]
    found["streaming, decay not by engine"] = [
        roc_auc_score(remaining[~young] < 15, replay(features, young, None, "streaming", seed)) for seed in seeds
    ]
    trivial = roc_auc_score(remaining[~young] < 15, np.abs(features[~young]).sum(axis=1))
    for policy, runs in found.items():
        figure = f"auc_{source}_replay_{policy.replace(', decay not by engine', '_one_clock')}"
        against = f"sum of |z|: {trivial:.3f}; {describe(runs)}"
        report.add(figure, statistics.mean(runs), "AUC", against=against, aim=POLICY_AIMS.get(f"{source}_{policy}"))


def replay(features: np.ndarray, young: np.ndarray, engine: np.ndarray | None, policy: str, seed: int) -> np.ndarray:
    """Scores of the rows past training; AWS' default decay."""
    forest = RandomCutForest(seed=seed, time_decay=2560, policy=policy)
    names = (None, None) if engine is None else (engine[young].tolist(), engine[~young].tolist())
    forest.fit(features[young], names[0])
    return forest.update(features[~young], names[1])


def add_figures(report: Report, prefix: str, values: dict[str, list[float]], aim: float | None) -> None:
    """One figure for the forest against each of the others."""
    forest = statistics.mean(values["forest"])
    report.note(f"  {prefix}: " + "; ".join(f"{name} {describe(runs)}" for name, runs in values.items()))
    report.add(f"auc_{prefix}", forest, "AUC", against="0.5: chance", aim=aim)
    for name in ("isolation_forest", "sum_abs_z"):
        peer = statistics.mean(values[name])
        report.add(f"auc_{prefix}_vs_{name}", forest, "AUC", against=f"{name}: {peer:.3f}", ratio=forest / peer)


def describe(runs: list[float]) -> str:
    """Mean and range."""
    return f"{statistics.mean(runs):.3f} ({min(runs):.3f} to {max(runs):.3f})"


def auc(scores: np.ndarray, worn: np.ndarray, healthy: np.ndarray) -> float:
    """Chance that a worn row scores above a healthy one."""
    labels = np.concatenate([np.ones(worn.sum()), np.zeros(healthy.sum())])
    return float(roc_auc_score(labels, np.concatenate([scores[worn], scores[healthy]])))


def subtract_baselines(engine: np.ndarray, training: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Columns less the engine's own median over its training cycles."""
    residuals = columns.copy()
    for unit in np.unique(engine):
        mine = engine == unit
        residuals[mine] -= np.median(columns[mine & training], axis=0)
    return residuals


def score_forest(history: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """The forest of this project with its defaults."""
    return RandomCutForest(seed=seed).fit(history).score_samples(rows)


def score_isolation_forest(history: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """Scikit-learn's forest, as large; turned round, so that higher is more anomalous."""
    return -IsolationForest(n_estimators=100, max_samples=256, random_state=seed).fit(history).score_samples(rows)


def score_sum_abs_z(history: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """The trivial baseline: how many deviations in all from the middle."""
    return np.abs(rows).sum(axis=1)


METHODS: dict[str, Scores] = {
    "forest": score_forest,
    "isolation_forest": score_isolation_forest,
    "sum_abs_z": score_sum_abs_z,
}


def load_fleet(report: Report) -> tuple[str, np.ndarray]:
    """(name, rows): columns engine, cycle, 3 settings, 21 sensors, float64."""
    if DATA.exists():
        with gzip.open(DATA, "rt") as lines:
            return "fd001", np.loadtxt(lines)
    report.note("C-MAPSS FD001 is not at ../shared/data/train_FD001.txt.gz: a generated fleet stands in for it")
    from demo.fleet import generate_fleet

    engines = generate_fleet(100, regimes=1, seed=1)
    return "generated", np.concatenate(
        [
            np.column_stack([np.full(engine.cycles, engine.unit), np.arange(1, engine.cycles + 1), engine.values])
            for engine in engines
        ]
    )


if __name__ == "__main__":
    main()
