"""How well the quality of answers is predicted from a prompt, and what a prediction costs.

    python benchmarks/quality_predictor.py --traces FOLDER [--seeds 3] [--minilm FOLDER] [--json F]

FOLDER holds ``llmrouter_quality.jsonl``: 4,491 prompts of 14 tasks, scored for nine models. Each
seed trains on four fifths of it and judges on the fifth that was not seen. Arms:

- constant: every model's mean.
- n-grams to scores: the same windows, trained straight on the scores, without task labels. It
  is what ``pointsman quality fit`` makes of a file whose prompts all have one task.
- pointsman: the predictor as it is read back from its artefact.
- pointsman, task stated: the request names its task.
- task means: the mean of the prompt's true task; needs the label of every request.
- MiniLM + k-NN: RouteBalance's predictor (k = 10, weight 1 / (1 - cosine + 1e-6)); only with
  ``--minilm``, the folder of all-MiniLM-L6-v2. ``--embeddings`` keeps its vectors in a file.
- oracle: the measured scores themselves.

The benchmark refuses to report when the artefact is not read back as it was written, when a
prediction is out of range, or when the predictor does not beat the constant.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One core, as a gateway has.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import msgspec
import numpy as np
from numpy.typing import NDArray
from provenance import provenance
from xxhash import xxh3_64_intdigest

from pointsman_serving.quality.artefact import pack, unpack
from pointsman_serving.quality.fit import fit
from pointsman_serving.quality.measure import measure
from pointsman_serving.quality.predictor import QualityPredictor
from pointsman_serving.quality.scores import ScoreTable, read_scores

METRICS = ("level_mae", "difference_mae", "difference_rmse", "regret", "calibration_error")
TIMED_BYTES = (200, 1_024, 48 * 1_024)
TIMED_ROUNDS = 3_000
NEIGHBOURS = 10
MOST_TOKENS = 256
TRAINED_AT = "2026-11-28T00:00:00+00:00"

Floats = NDArray[np.float64]


class WrongPredictionError(Exception):
    """The predictor does not do what it is measured for."""


def main() -> None:
    """Run all arms on the same splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--traces", type=Path, default=os.environ.get("POINTSMAN_TRACES"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--embeddings", type=Path, help="where MiniLM's vectors are kept (.npy)")
    parser.add_argument("--json", default="benchmarks/results/quality_predictor.json")
    options = parser.parse_args()
    if options.traces is None:
        parser.error("name the folder of llmrouter_quality.jsonl: --traces or POINTSMAN_TRACES")
    path = Path(options.traces) / "llmrouter_quality.jsonl"
    with path.open("rb") as lines:
        table = read_scores(lines, str(path))

    vectors, embedding_ms = None, None
    if options.minilm:
        embed = embedder(options.minilm)
        vectors = all_vectors(table.prompts, embed, options.embeddings)
        embedding_ms = timed_embedding(table.prompts, embed)
    runs = [run(table, seed, vectors) for seed in range(options.seeds)]
    arms = {
        arm: {metric: spread([found[arm][metric] for found, _, _ in runs]) for metric in METRICS}
        for arm in runs[0][0]
    }
    report = {
        **provenance("numpy"),
        "seeds": options.seeds,
        "prompts": len(table.prompts),
        "models": len(table.models),
        "tasks": len(table.tasks),
        "arms": arms,
        "fit": runs[0][1],
        "microseconds": timed(runs[-1][2], table),
        "embedding_milliseconds": embedding_ms,
    }
    print_report(report)
    if options.json == "-":
        json.dump(report, sys.stdout, indent=1)
    else:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    """Over the seeds."""
    return {"mean": statistics.fmean(values), "spread": max(values) - min(values)}


def run(
    table: ScoreTable, seed: int, vectors: Floats | None
) -> tuple[dict[str, dict[str, float]], dict[str, float], QualityPredictor]:
    """One split: the errors by arm, what the fit took, and the predictor."""
    order = np.random.default_rng(1_000 + seed).permutation(len(table.prompts))
    cut = len(order) // 5
    held_out, seen = table.take(np.sort(order[:cut])), table.take(np.sort(order[cut:]))
    began = time.perf_counter()
    weights = fit(seen, trained_at=TRAINED_AT, seed=seed)
    fit_seconds = time.perf_counter() - began
    data = pack(weights)
    predictor = QualityPredictor(unpack(data))
    written = QualityPredictor(weights)
    if any(written.predict(text) != predictor.predict(text) for text in held_out.prompts[:200]):
        raise WrongPredictionError("the artefact is not read back as it was written")
    alone = dataclasses.replace(seen, tasks=("Default",), task_of=np.zeros_like(seen.task_of))
    direct = QualityPredictor(fit(alone, trained_at=TRAINED_AT, seed=seed))

    priors = seen.scores.mean(axis=0)
    task_means = np.array(
        [seen.scores[seen.task_of == task].mean(axis=0) for task in range(len(table.tasks))]
    )
    names = [table.tasks[task] for task in held_out.task_of]
    predicted = {
        "constant": np.broadcast_to(priors, held_out.scores.shape),
        "n-grams to scores": predictions(lambda text, _: direct.predict(text), held_out, names),
        "pointsman": predictions(lambda text, _: predictor.predict(text), held_out, names),
        "pointsman, task stated": predictions(predictor.predict, held_out, names),
        "task means (labels)": task_means[held_out.task_of],
    }
    if vectors is not None:
        predicted["MiniLM + k-NN"] = nearest(
            vectors[np.sort(order[cut:])], seen.scores, vectors[np.sort(order[:cut])]
        )
    predicted["oracle"] = held_out.scores
    found = {arm: measure(rows, held_out.scores, priors) for arm, rows in predicted.items()}
    ours = predicted["pointsman"]
    if not ((ours >= 0) & (ours <= 1)).all():
        raise WrongPredictionError("a quality is not from 0 to 1")
    if found["pointsman"]["difference_rmse"] >= found["constant"]["difference_rmse"]:
        raise WrongPredictionError("the predictor does not beat the constant")
    facts = {
        "seconds": fit_seconds,
        "artefact_bytes": len(data),
        "promised_difference_rmse": weights.metrics["difference_rmse"],
        "difference_rmse": found["pointsman"]["difference_rmse"],
    }
    return found, facts, predictor


def predictions(
    predict: Callable[[str, str], dict[str, float]], table: ScoreTable, names: list[str]
) -> Floats:
    """[N, M]."""
    rows = [predict(text, task) for text, task in zip(table.prompts, names, strict=True)]
    return np.array([[row[model] for model in table.models] for row in rows])


def nearest(known: Floats, scores: Floats, asked: Floats) -> Floats:
    """RouteBalance's rule on unit vectors."""
    cosines = asked @ known.T
    near = np.argpartition(-cosines, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    weights = 1.0 / (1.0 - np.take_along_axis(cosines, near, axis=1) + 1e-6)
    weights = np.maximum(weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    found: Floats = np.einsum("nk,nkm->nm", weights, scores[near])
    return found


def embedder(folder: Path) -> Callable[[list[str]], Floats]:
    """Mean-pooled unit vectors of all-MiniLM-L6-v2, on one core."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder).eval()

    def embed(texts: list[str]) -> Floats:
        with torch.inference_mode():
            batch = tokenizer(
                texts, padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None].float()
            mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            unit: Floats = torch.nn.functional.normalize(mean, dim=-1).numpy().astype(np.float64)
        return unit

    return embed


def all_vectors(
    prompts: tuple[str, ...], embed: Callable[[list[str]], Floats], kept: Path | None
) -> Floats:
    """[N, 384]."""
    if kept is not None and kept.exists():
        vectors: Floats = np.load(kept, allow_pickle=False).astype(np.float64)
        if len(vectors) == len(prompts):
            return vectors
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    rows: list[Floats] = [np.empty(0)] * len(prompts)
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        for row, vector in zip(batch, embed([prompts[r] for r in batch]), strict=True):
            rows[row] = vector
    vectors = np.array(rows)
    if kept is not None:
        np.save(kept, vectors)
    return vectors


def timed_embedding(
    prompts: tuple[str, ...], embed: Callable[[list[str]], Floats]
) -> dict[str, float]:
    """Milliseconds of one prompt at a time."""
    times = []
    for text in prompts[:: max(1, len(prompts) // 100)]:
        began = time.perf_counter()
        embed([text])
        times.append(1e3 * (time.perf_counter() - began))
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def timed(predictor: QualityPredictor, table: ScoreTable) -> dict[str, dict[str, float]]:
    """Microseconds of a prediction for all models, by the prompt's bytes; in turns.

    p10 is what it takes while nothing else wants the core. ``reference`` is what the gateway
    does with the same prompt at the least: decode the JSON around it, and hash it once.
    """
    ascii_only = " ".join(text for text in table.prompts if text.isascii())
    times: dict[int, list[tuple[float, float]]] = {size: [] for size in TIMED_BYTES}
    for number in range(TIMED_ROUNDS):
        for size in TIMED_BYTES:
            start = number * 997 % (len(ascii_only) - size)
            text = ascii_only[start : start + size]
            body = msgspec.json.encode({"messages": [{"role": "user", "content": text}]})
            began = time.perf_counter()
            predictor.predict(text)
            middle = time.perf_counter()
            msgspec.json.decode(body)
            xxh3_64_intdigest(body)
            ended = time.perf_counter()
            times[size].append((1e6 * (middle - began), 1e6 * (ended - middle)))
    report = {}
    for size, pairs in times.items():
        found, reference = zip(*pairs, strict=True)
        report[str(size)] = {f"p{p}": float(np.percentile(found, p)) for p in (10, 50, 95, 99)}
        report[str(size)]["reference_p10"] = float(np.percentile(reference, 10))
    return report


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    arms = report["arms"]
    print(f"{'arm':<24}" + "".join(f"{metric:>20}" for metric in METRICS))
    for arm, found in arms.items():
        cells = (f"{found[m]['mean']:.4f} ±{found[m]['spread'] / 2:.4f}" for m in METRICS)
        print(f"{arm:<24}" + "".join(f"{cell:>20}" for cell in cells))
    fitted = report["fit"]
    print(
        f"\nfit {fitted['seconds']:.0f} s, artefact {fitted['artefact_bytes']:,} bytes; promised "
        f"difference_rmse {fitted['promised_difference_rmse']:.4f}, found "
        f"{fitted['difference_rmse']:.4f}"
    )
    for size, found in report["microseconds"].items():
        print(
            f"{int(size):>6} bytes: p10 {found['p10']:.1f} µs, p50 {found['p50']:.1f}, p99 "
            f"{found['p99']:.1f} for all {report['models']} models; decoding and hashing: p10 "
            f"{found['reference_p10']:.1f}"
        )
    if report["embedding_milliseconds"]:
        print(f"MiniLM, one prompt: p50 {report['embedding_milliseconds']['p50']:.1f} ms")


if __name__ == "__main__":
    main()
