"""What early selection costs and saves at the shapes of published models, with random weights.

    python benchmarks/true_shapes.py --device cuda --out true-shapes.json   # SD 1.5, SDXL, SD3.5 medium, FLUX.1-dev
    python benchmarks/true_shapes.py                                        # SD 1.5 at 192 px, on the CPU

Everything is a ratio of times that were taken in turns in one run; each model's rows are printed as they are done, and
--out is written after each of them.
"""

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from true_measures import Measures, Row
from true_models import MODELS, ON_A_CPU, Model, ready

from probeselect import __version__
from probeselect.backbones.loading import dtype_named
from probeselect.backbones.quiet import quiet_libraries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", choices=[model.name for model in MODELS], action="append", help="may be repeated")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, where there is the time")
    parser.add_argument("--prompts", type=int, default=8, help="in shared batches")
    parser.add_argument("--seconds", type=float, help="for each model (default: all in less than ten minutes of a GPU)")
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--dtype", help="bf16, fp16 or fp32 (default: bf16, on a CPU that has no instructions for it fp32)"
    )
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no GPU")
    if given.threads:
        torch.set_num_threads(given.threads)
    quiet_libraries()
    about = machine(given.device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    measured: list[dict[str, Any]] = []
    dtype = dtype_named(given.dtype) if given.dtype else usual_dtype(given.device)
    changes = {"pixels": given.pixels, "steps": given.steps, "seconds": given.seconds, "dtype": dtype}
    for model in chosen(given.device, given.only, **changes):
        measured.append(measure(model, given.device, given.repeats, given.prompts))
        if given.out:
            given.out.write_text(json.dumps({"machine": about, "models": measured}, indent=1) + "\n")
    print("\n" + table(measured))


def chosen(device: str, names: Sequence[str] | None, **changes: Any) -> list[Model]:
    """The rows to measure, changed as was asked for; on a CPU those that take minutes, unless others are named."""
    models = [m for m in MODELS if (m.name in names if names else device == "cuda" or m.name in ON_A_CPU)]
    if device == "cpu":
        models = [replace(m, **ON_A_CPU.get(m.name, {})) for m in models]
    return [replace(m, **{name: value for name, value in changes.items() if value}) for m in models]


def usual_dtype(device: str) -> torch.dtype:
    """bf16, except on a CPU that would emulate it."""
    has = device == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has else torch.float32


def measure(model: Model, device: str, repeats: int, prompts: int) -> dict[str, Any]:
    """Build, measure and print one model, and let go of it. What fails is told in `error`."""
    began = time.perf_counter()
    settings = {"pixels": model.pixels, "steps": model.steps, "wave": model.wave, "dtype": str(model.dtype)[6:]}
    found: dict[str, Any] = {"model": model.name, **settings, "rows": []}
    try:
        measures = Measures(model, ready(model.build(device), model, device), device, repeats, prompts)
        found["seconds_to_build"] = round(time.perf_counter() - began, 1)
        print(f"\n{model.name}: {settings}, built in {found['seconds_to_build']} s", flush=True)
        for row in measures.rows():
            found["rows"].append(row)
            print(line(row), flush=True)
        del measures
    except (RuntimeError, MemoryError) as error:  # of this model; there are others
        found["error"] = " ".join(str(error).split())[:300]
        print(f"{model.name}: {found['error']}", flush=True)
    found["seconds"] = round(time.perf_counter() - began, 1)
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


def line(row: Row) -> str:
    """A row on the console."""
    if row["ratio"] is None:
        return f"{'-':>9}  {row['what']}: {row['why']}"
    more = [f"limit {row['limit']}"] if row["limit"] else []
    if "seconds" in row:
        more.append(f"{row['seconds']:.4g} s over {row['reference_seconds']:.4g} s")
    if "lowest" in row:
        more.append(f"rounds {row['lowest']:.4g} to {row['highest']:.4g}")
    if "bytes" in row:
        more.append(f"{row['bytes'] / 2**20:.1f} MiB over {row['reference_bytes'] / 2**20:.1f} MiB")
    if "parts" in row:
        more.append(", ".join(f"{part} {share:.1%}" for part, share in row["parts"].items()))
    return (
        f"{row['ratio']:>9.4g}  {row['what']} ({'; '.join(more)})" if more else f"{row['ratio']:>9.4g}  {row['what']}"
    )


def table(measured: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for every figure, a column for every model."""
    columns = [{row["what"]: row for row in each["rows"]} for each in measured]
    heads = [f"{m['model']}, {m['pixels']} px, {m['steps']} steps, {m['dtype']}" for m in measured]
    lines = ["| ratio | " + " | ".join([*heads, "limit"]) + " |", "|---" * (len(heads) + 2) + "|"]
    for what in dict.fromkeys(what for column in columns for what in column):
        rows = [column.get(what) for column in columns]
        cells = ["-" if row is None or row["ratio"] is None else f"{row['ratio']:.3g}" for row in rows]
        limit = next((str(row["limit"]) for row in rows if row and row["limit"]), "")
        lines.append(f"| {what} | " + " | ".join([*cells, limit]) + " |")
    return "\n".join(lines)


def machine(device: str) -> dict[str, str]:
    """What the figures were taken on, and when."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        names = [each.split(":")[1] for each in info.read_text().splitlines() if each.startswith("model name")]
        name = (names[0].strip() if names else platform.processor()) if info.exists() else platform.processor()
        name += f" ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"
    versions = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    return {"device": name, **versions, "probeselect": __version__, "date": date.today().isoformat()}


if __name__ == "__main__":
    main()
