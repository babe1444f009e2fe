"""Speed of the forest beside krcf (AWS's Rust), rrcf and scikit-learn's IsolationForest.

Score, score and learn, explain, fit, restore. `python bench/forest.py [--quick]`. One thread unless said. Rates are the
median of interleaved rounds, so that a busy machine slows all alike. krcf is looked for and left out, with a word, if it is
not installed (`pip install krcf`); its rates include its own conversion of a row from a list, as there is no other way in.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import Report
from scorer import RandomCutForest
from scorer.shingle import Shingler

SHAPES = {"24d_100t": (24, 100, 256), "40d_30t": (40, 30, 256), "5x8_30t": (40, 30, 256)}
Work = Callable[[np.ndarray], object]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, under 50 seconds")
    quick = parser.parse_args().quick
    report = Report("Forest, rows per second, one thread")
    krcf = _import_krcf(report)
    for name, shape in SHAPES.items():
        measure_rates(report, name, shape, krcf, quick)
    measure_threads(report, quick)
    measure_batch(report)
    measure_start(report)
    report.finish()


def measure_rates(report: Report, name: str, shape: tuple[int, int, int], krcf: object, quick: bool) -> None:
    """Rates of scoring, streaming and explaining, all peers in turn, several rounds."""
    columns, trees, samples = shape
    rng = np.random.default_rng(0)
    history, rows = rng.normal(size=(4000, columns)), rng.normal(size=(8000, columns))
    if name.startswith("5x8"):
        series = rng.normal(size=(20_000, 5))
        shingles, _ = Shingler(8).push(series[: 4000 + len(rows) + 7])
        history, rows = shingles[:4000], shingles[4000:]
    decay = 10 * samples  # AWS's default, at which a tree takes 39 times as many rows as at Kinesis' and ours
    ours = RandomCutForest(trees=trees, samples=samples).fit(history)
    stream = RandomCutForest(trees=trees, samples=samples, policy="streaming").fit(history)
    fast = RandomCutForest(trees=trees, samples=samples, time_decay=decay, policy="streaming").fit(history)
    gated = RandomCutForest(trees=trees, samples=samples).fit(history)
    works: dict[str, tuple[Work, int]] = {
        "score": (ours.score_samples, len(rows)),
        "stream": (stream.update, len(rows)),
        "attribution": (ours.explain, 2000 if quick else 8000),
        "stream_decay_2560": (fast.update, len(rows)),
        "gated": (gated.update, len(rows)),
    }
    if krcf is not None:
        few = 200 if quick else 1000
        options = {"dimensions": columns, "shingle_size": 1, "num_trees": trees, "sample_size": samples, "random_seed": 1}
        options |= {"lambda": 1.0 / ours.time_decay, "output_after": 1}
        peer = krcf.RandomCutForest(options)
        peer_fast = krcf.RandomCutForest(options | {"lambda": 1.0 / decay})
        for row in history.tolist():
            peer.update(row)
            peer_fast.update(row)
        works["krcf score"] = (lambda part: [peer.score(row) for row in part.tolist()], few)
        works["krcf stream"] = (lambda part: [(peer.score(row), peer.update(row)) for row in part.tolist()], few)
        works["krcf stream_decay_2560"] = (
            lambda part: [(peer_fast.score(row), peer_fast.update(row)) for row in part.tolist()],
            few,
        )
        works["krcf attribution"] = (lambda part: [peer.attribution(row) for row in part.tolist()], few)
    if name == "24d_100t":
        add_rrcf(works, history)
        from sklearn.ensemble import IsolationForest

        isolation = IsolationForest(n_estimators=trees, max_samples=samples, random_state=0).fit(history)
        works["IsolationForest score"] = (isolation.score_samples, len(rows))
    rates = interleave(works, rows, rounds=3 if quick else 7)
    aims = {"score": 15.0, "stream": 15.0, "stream_decay_2560": 15.0, "attribution": 15.0}
    for verb in ("score", "stream", "stream_decay_2560", "gated", "attribution"):
        report.add(f"{verb}_{name}", rates[verb], "rows/s")
        if f"krcf {verb}" in rates:
            against = f"krcf: {rates[f'krcf {verb}']:,.0f} rows/s"
            figure = f"{verb}_vs_krcf" if name == "24d_100t" else f"{verb}_vs_krcf_{name}"
            report.add(
                figure, rates[verb], "rows/s", against=against, ratio=rates[verb] / rates[f"krcf {verb}"], aim=aims.get(verb)
            )
    if "rrcf stream, 10 trees" in rates:
        rrcf_rate = rates["rrcf stream, 10 trees"] / 10
        against = f"rrcf (a tenth of its rate with 10 trees): {rrcf_rate:,.1f} rows/s"
        report.add(
            "stream_vs_rrcf",
            rates["stream_decay_2560"],
            "rows/s",
            against=against,
            ratio=rates["stream_decay_2560"] / rrcf_rate,
        )
    if "IsolationForest score" in rates:
        against = f"IsolationForest (no boxes): {rates['IsolationForest score']:,.0f} rows/s"
        report.add("score_vs_isolation_forest", rates["score"], "rows/s", against=against, ratio=_share(rates))


def add_rrcf(works: dict[str, tuple[Work, int]], history: np.ndarray) -> None:
    """Score and learn as its documentation shows: insert, take the collusive displacement, forget the oldest; ten trees."""
    try:
        import rrcf
    except ImportError:
        return
    trees = [rrcf.RCTree() for _ in range(10)]
    for tree in trees:
        for i, row in enumerate(history[:256]):
            tree.insert_point(row, index=i)
    state = {"next": 256}

    def stream(part: np.ndarray) -> None:
        for row in part:
            for tree in trees:
                tree.forget_point(state["next"] - 256)
                tree.insert_point(row, index=state["next"])
                tree.codisp(state["next"])
            state["next"] += 1

    works["rrcf stream, 10 trees"] = (stream, 30)


def _share(rates: dict[str, float]) -> float:
    return rates["score"] / rates["IsolationForest score"]


def interleave(
    works: dict[str, tuple[Work, int]], rows: np.ndarray, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Rows per second of each work, given its number of rows; the median of `rounds` rounds in which each has its turn.

    Of processor time, unless another clock is given: on a busy machine the others' turns are no part of it.
    """
    for work, _ in works.values():
        work(rows[:50])  # compile, fill caches
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, count) in works.items():
            started_s = clock()
            work(rows[:count])
            found[name].append(count / (clock() - started_s))
    return {name: statistics.median(values) for name, values in found.items()}


def measure_threads(report: Report, quick: bool) -> None:
    """What a second thread adds to scoring: the shortest times of many rounds in turn, by the clock.

    On a machine that others share, a longer time says how much of the second core they had meanwhile, often for seconds.
    """
    rng = np.random.default_rng(1)
    history, rows = rng.normal(size=(4000, 24)), rng.normal(size=(10_000, 24))
    one, two = RandomCutForest().fit(history), RandomCutForest(threads=2).fit(history)
    times: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(20 if quick else 100):
        time.sleep(0.05)
        for name, forest in (("one", one), ("two", two)):
            times[name].append(best_s(lambda forest=forest: forest.score_samples(rows), rounds=1))  # type: ignore[misc]
    one_rate, two_rate = (len(rows) / min(times[name]) for name in ("one", "two"))
    against = f"one thread: {one_rate:,.0f} rows/s"
    report.add("two_threads_vs_one", two_rate, "rows/s", against=against, ratio=two_rate / one_rate, aim=1.7)


def measure_batch(report: Report) -> None:
    """Fit of 20,000 rows, with and without honest scores of them; size and time of a checkpoint."""
    from sklearn.ensemble import IsolationForest

    rows = np.random.default_rng(2).normal(size=(20_000, 24))
    forest, isolation = RandomCutForest(), IsolationForest(n_estimators=100, max_samples=256, random_state=0)
    forest.fit_score(rows[:300])
    fit_s, peer_s = best_s(lambda: forest.fit(rows)), best_s(lambda: isolation.fit(rows))
    against = f"IsolationForest: {peer_s:.3f} s"
    report.add("fit_20000_rows", fit_s, "s", against=against, ratio=peer_s / fit_s)
    report.add("fit_20000_rows_under_aim", fit_s, "s", against="aim: 2 s", ratio=2.0 / fit_s, aim=1.0)
    report.add("fit_score_20000_rows", best_s(lambda: forest.fit_score(rows)), "s")
    checkpoint = forest.to_bytes()
    RandomCutForest.from_bytes(checkpoint)
    restore_s = best_s(lambda: RandomCutForest.from_bytes(checkpoint))
    report.add("checkpoint_size", len(checkpoint) / 2**20, "MiB", against=f"in memory: {forest.state_bytes / 2**20:.1f} MiB")
    report.add("restore_under_aim", restore_s * 1e3, "ms", against="aim: 100 ms", ratio=0.1 / restore_s, aim=1.0)
    one = best_s(lambda: forest.score_samples(rows[:1]), rounds=200)
    report.add("score_one_row", one * 1e6, "us")


def measure_start(report: Report) -> None:
    """A new process to its first score, with the compiled code in numba's cache; processor time, as of the rates."""
    code = "import numpy as np; from scorer import RandomCutForest as F; F().fit(X := np.ones((300, 24))).score_samples(X)"
    run = [sys.executable, "-c", code]
    root = Path(__file__).resolve().parents[1]
    subprocess.run(run, check=True, cwd=root)
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(run, check=True, cwd=root)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    start_s = min(times)
    report.add("start_to_first_score_under_aim", start_s, "s", against="aim: 1 s", ratio=1.0 / start_s, aim=1.0)


def best_s(work: Callable[[], object], rounds: int = 5) -> float:
    """Shortest of several runs, in seconds."""
    times = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return min(times)


def _import_krcf(report: Report) -> object:
    try:
        import krcf
    except ImportError:
        report.note("krcf is not installed: no comparison with AWS's forest (pip install krcf)")
        return None
    return krcf


if __name__ == "__main__":
    main()
