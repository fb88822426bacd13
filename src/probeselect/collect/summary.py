"""What a dataset holds, counted and drawn: summary.json and summary.png."""

import io
from collections import Counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from probeselect.data.dataset import Dataset
from probeselect.data.sealed import canonical_json, read_manifest, write_file
from probeselect.data.shards import ShardManifest

INK, BAR = "#1c1e22", "#2f6fb0"


def summarise(dataset: Dataset) -> dict[str, Any]:
    """Candidates by status; of every evaluator the rewards by status, their mean, spread and spread within a prompt."""
    statuses: Counter[str] = Counter()
    scored: dict[str, Counter[str]] = {name: Counter() for name in dataset.evaluators}
    rewards: dict[str, list[Any]] = {name: [] for name in dataset.evaluators}
    size = given_up = 0
    for index in dataset.done():
        rows = dataset.rows(index)
        statuses.update(rows["status"].to_pylist())
        manifest = read_manifest(dataset.shard(index), ShardManifest)
        size += sum(entry.bytes for entry in manifest.files.values())
        given_up += manifest.made.given_up or 0
        for name in dataset.evaluators:
            if f"reward/{name}" in rows.column_names:
                scored[name].update(rows[f"status/{name}"].to_pylist())
                rewards[name].append(rows[f"reward/{name}"].to_numpy().astype(float))
    groups = sum(dataset.groups_of(index) for index in dataset.done())
    return {
        "groups": groups,
        "groups_planned": dataset.config.prompts.count,
        "groups_given_up": given_up,
        "candidates": dict(sorted(statuses.items())),
        "bytes_per_candidate": round(size / max(1, sum(statuses.values()))),
        "rewards": {
            name: {"statuses": dict(sorted(scored[name].items())), **_figures(np.concatenate(parts), dataset.n)}
            for name, parts in rewards.items()
            if parts
        },
    }


def _figures(values: Any, n: int) -> dict[str, Any]:
    groups = values.reshape(-1, n)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"mean": None, "std": None, "std_within_prompt": None}
    within = groups[np.isfinite(groups).all(1)]
    centred = within - within.mean(1, keepdims=True) if len(within) else within
    spread = float(np.sqrt((centred**2).sum() / max(1, len(within) * (n - 1)))) if len(within) and n > 1 else None
    return {
        "mean": round(float(finite.mean()), 6),
        "std": round(float(finite.std()), 6),
        "std_within_prompt": None if spread is None else round(spread, 6),
    }


def write_summary(dataset: Dataset) -> dict[str, Any]:
    """Write summary.json and summary.png into the dataset's folder, and return what the first one holds."""
    content = summarise(dataset)
    write_file(dataset.folder / "summary.png", _picture(dataset, content))
    write_file(dataset.folder / "summary.json", canonical_json(content))
    return content


def _picture(dataset: Dataset, content: dict[str, Any]) -> bytes:
    names = list(content["rewards"])
    figure = Figure(figsize=(4.2 * (1 + len(names)), 3.4), layout="constrained")
    axes = figure.subplots(1, 1 + len(names), squeeze=False)[0]
    candidates = content["candidates"]
    bars = axes[0].barh(list(candidates), list(candidates.values()), color=BAR)
    axes[0].bar_label(bars, padding=3, color=INK)
    axes[0].margins(x=0.25)
    axes[0].set_ylim(max(len(candidates), 4) - 0.5, -0.5)  # bars of one height, however few
    axes[0].set_title(f"{content['groups']} of {content['groups_planned']} prompts, candidates by status", fontsize=9)
    for axis, name in zip(axes[1:], names, strict=True):
        table = np.concatenate([
            dataset.rows(i)[f"reward/{name}"].to_numpy().astype(float)
            for i in dataset.done()
            if dataset.scores(name, i).is_dir()
        ])  # fmt: skip
        axis.hist(table[np.isfinite(table)], bins=40, color=BAR)
        figures = content["rewards"][name]
        spread = figures["std_within_prompt"]
        within = "" if spread is None else f", within a prompt {spread:.3g}"
        mean = "no reward" if figures["mean"] is None else f"mean {figures['mean']:.3g}, std {figures['std']:.3g}"
        axis.set_title(f"{name}: {mean}{within}", fontsize=9)
        axis.set_ylabel("candidates", fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
