"""Taps: named activations of a denoiser, read as maps of the conditional rows in candidate order.

Knows how a module's output becomes a map and which rows and calls are conditional. Does not know steps, rungs
or seeds: the caller says when a step begins (`clear`) and how many candidates there are (`read`).

Shapes: rows = g * n rows of a denoiser call for n candidates; C channels; H, W the height and width of the
module's own map, or of the latent over the patch size for token streams.

Clips: a map is the mean over the latent frames. So it has the shape of a picture's, whatever the number of frames, and
one probe fits clips of any length; what it cannot see is motion.
"""

import difflib
import inspect
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from probeselect.backbones.cross_attention import CrossAttention, cross_attention_layers
from probeselect.backbones.families import Family, Layout
from probeselect.backbones.token_grid import TokenGrid
from probeselect.core.errors import ProbeSelectError, UsageError


@dataclass(frozen=True)
class Tap:
    """One activation: the output of the denoiser's module at `path`, named as it was written."""

    name: str
    path: str
    layout: Layout

    @classmethod
    def parse(cls, text: str, family: Family) -> "Tap":
        """Read "up_blocks.2.resnets.1", "up_blocks[2].resnets[1]", "x0" or "attention"; else a UsageError.

        A suffix says where the image is if neither the family nor the shapes tell: ":1" takes the second element
        of a tuple, ":first" or ":last" the first or last tokens of a sequence that text shares.
        """
        if text.strip() in VIRTUAL:
            return VIRTUAL[text.strip()]
        match = re.fullmatch(r"([^:]+)(:\d+)?(:first|:last)?", re.sub(r"\[(\d+)\]", r".\1", text.strip()))
        if match is None:
            raise UsageError(f"tap: {text!r} is not a module path, with or without a suffix :0, :1, :first, :last")
        path, stream, image = match.groups()
        known = family.layout(path)
        places: dict[str, Literal["first", "last"]] = {":first": "first", ":last": "last"}
        layout = Layout(
            int(stream[1:]) if stream else known.stream, places[image] if image else known.image, known.rows
        )
        return cls(match[0], path, layout)

    def module(self, denoiser: nn.Module) -> nn.Module:
        """The module of `denoiser` that this tap reads; UsageError with near matches if there is none."""
        modules = dict(denoiser.named_modules())
        if self.path not in modules or not self.path:
            near = difflib.get_close_matches(self.path, modules, n=3, cutoff=0.5) or list(modules)[1:4]
            raise UsageError(f"tap: {type(denoiser).__name__} has no module {self.path!r}; near it: {', '.join(near)}")
        return modules[self.path]

    def check(self, denoiser: nn.Module) -> None:
        """Raise UsageError if there is nothing in `denoiser` that this tap could read."""
        if self == ATTENTION:
            cross_attention_layers(denoiser)
        elif self != X0:
            self.module(denoiser)

    def map(self, output: Any, grid: TokenGrid) -> Tensor:
        """One output of the module as a map [rows, C, H, W]; else a UsageError that says what to pass."""
        stream = self._stream(output, grid)
        if stream.ndim == 5:
            return stream.mean(2)  # over the frames of [rows, C, F, H, W]
        if stream.ndim == 4:
            return stream
        image = grid.image
        length = stream.shape[1]
        if length == grid.tokens or (self.layout.image == "first" and length > image):
            return grid.to_map(stream[:, :image])
        if self.layout.image == "last" and length > grid.tokens:
            return grid.to_map(stream[:, length - grid.tokens :][:, :image])
        if self.layout.image == "after text" and grid.text_lengths is not None and length > image:
            steps = torch.arange(image, device=stream.device)
            index = grid.text_lengths.to(stream.device)[:, None] + steps  # [rows, image]
            return grid.to_map(stream.gather(1, index[..., None].expand(-1, -1, stream.shape[2])))
        raise self._unclear(output, grid)

    def _stream(self, output: Any, grid: TokenGrid) -> Tensor:
        streams = output if isinstance(output, tuple) else (output,)
        if self.layout.stream is not None:
            streams = streams[self.layout.stream :][:1]
        maps = [s.transpose(0, self.layout.rows) for s in streams if isinstance(s, Tensor) and s.ndim in (3, 4, 5)]
        fitting = [s for s in maps if s.ndim > 3 or s.shape[1] == grid.tokens]
        if len(fitting or maps) != 1:
            raise self._unclear(output, grid)
        return (fitting or maps)[0]

    def _unclear(self, output: Any, grid: TokenGrid) -> UsageError:
        streams = output if isinstance(output, tuple) else (output,)
        shapes = ", ".join(str(list(s.shape)) if isinstance(s, Tensor) else type(s).__name__ for s in streams)
        return UsageError(
            f"tap: cannot find the image in the output of {self.name!r}: {shapes} for {grid.height} x "
            f"{grid.width} image tokens; tap another module, or say where the image is with {self.path}:0 or :1 "
            f"(element of a tuple), {self.path}:first or :last (tokens of a sequence)"
        )


X0 = Tap("x0", "x0", Layout())  # virtual: the latent x0-prediction, which the sampler makes
ATTENTION = Tap("attention", "attention", Layout())  # virtual: a map of every text token, see CrossAttention
VIRTUAL = {tap.name: tap for tap in (X0, ATTENTION)}  # no module's outputs


class HasTaps(Protocol):
    """What a TapReader needs of a backbone."""

    @property
    def denoiser(self) -> nn.Module: ...
    @property
    def family(self) -> Family: ...
    @property
    def taps(self) -> tuple[Tap, ...]: ...


def conditional_rows(rows: Tensor, n: int, family: Family) -> Tensor:
    """Keep the conditional rows of one denoiser call: [g * n, ...] -> [n, ...] in candidate order."""
    parts, rest = divmod(len(rows), n)
    if rest or not 1 <= parts <= (family.parts if family.guidance == "batched" else 1):
        raise ProbeSelectError(
            f"model: {family.name} gave its denoiser {len(rows)} rows for {n} candidates; "
            f"which of them are conditional is not known"
        )
    return rows if parts == 1 else rows.unflatten(0, (parts, n))[family.conditional]


class TapReader(AbstractContextManager["TapReader"]):
    """Reads the taps of a backbone (all but X0) while its pipeline runs, inside a `with` block.

    with TapReader(backbone) as reader:
        reader.clear()              # a step begins
        ...                         # the pipeline calls its denoiser, once or once per guidance branch
        maps = reader.read(n)       # {tap name: [n, C, H, W]}

    Kept is the first conditional call after `clear`: of the calls of a step only the conditional one counts.
    While `enabled` is False no output is kept. Wrappers of the denoiser's forward do not matter if the real one
    runs once.
    """

    def __init__(self, backbone: HasTaps, taps: Sequence[Tap] | None = None) -> None:
        self.enabled = True
        self._backbone = backbone
        self.taps = [tap for tap in dict.fromkeys(backbone.taps if taps is None else taps) if tap != X0]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._attention = CrossAttention()
        self.clear()

    def __enter__(self) -> Self:
        # torch.compile(denoiser) wraps the module whose hooks we need
        self._denoiser: nn.Module = getattr(self._backbone.denoiser, "_orig_mod", self._backbone.denoiser)
        for tap in self.taps:
            tap.check(self._denoiser)
        self._handles = [self._denoiser.register_forward_pre_hook(self._on_call, with_kwargs=True)]
        for tap in self.taps:
            if tap == ATTENTION:
                self._handles += self._attention.hooks(self._denoiser, self._latent_size)
            else:
                self._handles.append(tap.module(self._denoiser).register_forward_hook(self._on_output(tap)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    def clear(self) -> None:
        """A step begins: forget what was kept and count the denoiser's calls from here."""
        self._calls = 0
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._outputs: dict[str, list[Any]] = {}
        self._attention.clear()

    def read(self, n: int) -> dict[str, Tensor]:
        """Maps of the call's n candidates, {tap name: [n, C, H, W]}; ProbeSelectError if a tap did not fire."""
        maps = {}
        for tap in self.taps:
            if tap == ATTENTION:
                maps[tap.name] = self._attention.probabilities(partial(self._conditional, n))
                continue
            outputs = self._outputs.get(tap.name, [])
            if len(outputs) != 1:
                raise ProbeSelectError(
                    f"tap: {tap.name!r} fired {len(outputs)} times instead of once in the denoiser's "
                    f"conditional call ({self._calls} calls since clear, reader {'on' if self.enabled else 'off'})"
                )
            maps[tap.name] = self._conditional(n, tap.map(outputs[0], self._grid()))
        return maps

    def prompt_embeddings(self, n: int) -> Tensor | None:
        """Mean over the text tokens that the denoiser was given, [n, D]; None if it takes no such sequence."""
        if self._call is None:
            return None
        args, kwargs = self._call
        signature = inspect.signature(type(self._denoiser).forward)
        text = signature.bind(self._denoiser, *args, **kwargs).arguments.get("encoder_hidden_states")
        if not isinstance(text, Tensor) or text.ndim != 3:
            return None
        return self._conditional(n, text.mean(1))

    def latent_map(self, latents: Tensor) -> Tensor:
        """Latents as the scheduler sees them -> map [n, C, H, W]: tokens laid out, the mean over frames."""
        if latents.ndim == 3:
            return self._grid().to_map(latents)
        if latents.ndim == 5:
            axes = self._backbone.family.latents
            return latents.permute([axes.index(axis) for axis in "NCFHW"]).mean(2)
        return latents

    def _grid(self) -> TokenGrid:
        if self._call is None:
            raise ProbeSelectError("tap: nothing to read, the denoiser has not been called since clear")
        return TokenGrid.of(self._denoiser, *self._call, axes=self._backbone.family.latents)

    def _conditional(self, n: int, rows: Tensor) -> Tensor:
        return conditional_rows(rows, n, self._backbone.family)

    def _latent_size(self) -> tuple[int, int] | None:
        """Height and width of the latents of the call that is being kept; None in any other."""
        if not (self.enabled and self._wanted()):
            return None
        grid = self._grid()
        return grid.height, grid.width

    def _wanted(self) -> bool:
        family = self._backbone.family
        return self._calls == 1 + (family.conditional if family.guidance == "calls" else 0)

    def _on_call(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls += 1
        if self._wanted():
            self._call = (args, kwargs)

    def _on_output(self, tap: Tap) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.enabled and self._wanted():
                self._outputs.setdefault(tap.name, []).append(_copy(output))

        return hook


def _copy(output: Any) -> Any:
    """Detached copy of the tensors: some denoisers go on working on a block's output in place."""
    if isinstance(output, tuple):
        return tuple(_copy(element) for element in output)
    return output.detach().clone() if isinstance(output, Tensor) else output
