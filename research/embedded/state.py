"""What all stages share: seeded batches, a warm-up + cosine rate, EMA, resumable state files.

State is safetensors only; a state file is complete or absent (temporary name, then rename).
"""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from probeselect.embedded.captions import caption, draw_spec, split_of
from research.embedded.render import Scene, draw_scene, render


@dataclass(frozen=True)
class Sample:
    """One render with the caption it was drawn from."""

    scene: Scene
    caption: str
    image: Tensor  # [3, 64, 64] in [-1, 1]


def draw_sample(rng: random.Random, split: str = "train") -> Sample:
    """Draw a caption of `split` and render a scene of it."""
    while True:
        spec = draw_spec(rng)
        text = caption(spec, rng)
        if split_of(text) == split:
            scene = draw_scene(spec, rng)
            return Sample(scene, text, to_tensor(render(scene, rng)))


def to_tensor(image) -> Tensor:  # type: ignore[no-untyped-def]
    """uint8 [H, W, 3] to float [3, H, W] in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def rate_at(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, constant to 40 %, cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = max(0.0, (step / steps - 0.4) / 0.6)
    return peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def has_quick_bf16() -> bool:
    """Whether bf16 is worth it: with AVX-512 it was seen to be twice as fast as fp32, without it is emulated."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def quick_arithmetic() -> torch.autocast:
    """bf16 where that is quick, else fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_quick_bf16())


@dataclass
class TrainingState:
    """A module in training with its optimizer and the running mean of its weights (EMA), saved as one file."""

    path: Path
    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema_decay: float = 0.998
    step: int = 0
    ema: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ema = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        if self.path.exists():
            self._load()

    def update(self, loss: Tensor, rate: float, max_norm: float = 1.0) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), max_norm)
        self.optimizer.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.ema[name].lerp_(value, 1 - decay)
                else:
                    self.ema[name].copy_(value)

    def save(self) -> None:
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in slots.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, partial, {"step": str(self.step)})
        partial.replace(self.path)

    def _load(self) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        module: dict[str, Tensor] = {}
        with safe_open(self.path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part, name = key.split(".", 1)
                if part == "module":
                    module[name] = file.get_tensor(key)
                elif part == "ema":
                    self.ema[name] = file.get_tensor(key)
                else:
                    index, slot = name.split(".", 1)
                    slots.setdefault(int(index), {})[slot] = file.get_tensor(key)
        self.module.load_state_dict(module)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})

    def use_ema(self) -> None:
        """Give the module its averaged weights, in eval mode: training is over."""
        self.module.load_state_dict(self.ema)
        self.module.eval()


@dataclass
class Log:
    """One JSON line every `every` steps: mean loss since the last line, samples/s, time left."""

    path: Path
    steps: int
    every: int = 50
    _sums: dict[str, float] = field(default_factory=dict)
    _count: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add(self, step: int, samples: int, **losses: float) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self.every and step != self.steps:
            return
        seconds = time.monotonic() - self._since
        line = {
            "step": step,
            "of": self.steps,
            **{k: round(v / self._count, 5) for k, v in self._sums.items()},
        }
        line |= {"samples_per_second": round(samples * self._count / seconds, 1)}
        line |= {"minutes_left": round((self.steps - step) * seconds / self._count / 60, 1)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        self._sums, self._count, self._since = {}, 0, time.monotonic()


def steps_of(
    state: TrainingState, steps: int, stage: str, save_every: int = 500
) -> Iterator[tuple[int, random.Random]]:
    """Yield (step, its own random generator) from where `state` stands; saves as it goes."""
    while state.step < steps:
        before = state.step
        torch.manual_seed(before * 7919 + len(stage))
        yield before, random.Random(f"{stage}:{before}")
        if state.step % save_every == 0 or state.step == steps:
            state.save()
