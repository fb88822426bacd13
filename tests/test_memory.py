"""Whether a module remembers its calls is seen from what stands around it, and can be put back."""

import types

import pytest
import torch
from tiny import tiny_sd
from torch import nn

from probeselect.rollout.memory import MemoryWatch

COUNT = 0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.inner = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[0](self.linear(x))


def attribute(block: Block):
    block.calls = 0

    def forward(self, x):
        self.calls += 1
        return x

    block.forward = types.MethodType(forward, block)
    return lambda: block.calls


def inner_attribute(block: Block):
    inner = block.inner[0]
    inner.calls, usual = [0], inner.forward

    def forward(x):
        inner.calls[0] += 1
        return usual(x)

    inner.forward = forward
    return lambda: inner.calls[0]


def closure(block: Block):
    calls, usual = 0, block.forward

    def forward(x):
        nonlocal calls
        calls += 1
        return usual(x)

    block.forward = forward
    return lambda: calls


def in_a_global(block: Block):
    global COUNT
    COUNT, usual = 0, block.forward

    def forward(x):
        global COUNT
        COUNT += 1
        return usual(x)

    block.forward = forward
    return lambda: COUNT


def kept_output(block: Block):
    kept, usual = {}, block.forward

    def forward(x):
        kept["last"] = usual(x)
        return kept["last"]

    block.forward = forward
    return lambda: len(kept)


def hook(block: Block):
    class Hook:
        calls = 0

        def __call__(self, module, args, output):
            self.calls += 1

    mine = Hook()
    block.register_forward_hook(mine)
    return lambda: mine.calls


def two_steps(block: Block, pipe=None) -> MemoryWatch:
    watch = MemoryWatch({"block": block}, pipe)
    watch.run_begins()
    for _ in range(2):
        watch.before_call()
        block(torch.ones(1, 4))
        watch.step_over()
    watch.run_ends()
    return watch


@pytest.mark.parametrize("kind", [attribute, inner_attribute, closure, in_a_global, kept_output, hook])
def test_a_memory_is_found_in_two_steps_and_put_back(kind):
    block = Block()
    read = kind(block)
    watch = two_steps(block)
    assert "block" in watch.remembers
    watch.restore()
    assert read() == 0


def plain(block: Block) -> None:
    pass


def replaced(block: Block) -> None:
    usual = block.forward
    block.forward = lambda x: 2 * usual(x)


def filled_once(block: Block) -> None:
    """Such as a table of frequencies that the first call makes."""
    usual = block.forward
    block.table = None

    def forward(x):
        if block.table is None:
            block.table = torch.ones(4)
        return usual(x) * block.table

    block.forward = forward


@pytest.mark.parametrize("kind", [plain, replaced, filled_once])
def test_what_stays_as_it_is_after_the_first_step_is_no_memory(kind):
    block = Block()
    kind(block)
    watch = two_steps(block)
    assert watch.remembers == ""
    watch.restore()
    block(torch.ones(1, 4))


def test_a_callback_that_changes_a_module_is_found_and_undone():
    block = Block()
    block.scale = [1.0, 0.5]
    watch = MemoryWatch({"block": block}, callbacks=True)
    watch.run_begins()
    assert not watch.restore()
    block.scale[1] = 0.0
    assert watch.restore() and block.scale == [1.0, 0.5]
    block.scale = [0.0, 0.0]
    assert watch.restore() and block.scale == [1.0, 0.5]
    assert watch.remembers == ""


def test_a_counter_on_the_pipeline_is_a_memory_and_what_pipelines_set_themselves_is_not():
    pipe, block = tiny_sd(), Block()
    pipe.calls, pipe._current_timestep = 0, 981
    usual = block.forward

    def forward(x):
        pipe._current_timestep -= 20
        return usual(x)

    block.forward = forward
    assert two_steps(block, pipe).remembers == ""

    def counting(x):
        pipe.calls += 1
        return forward(x)

    block.forward = counting
    watch = two_steps(block, pipe)
    assert watch.remembers and pipe.calls == 2
    watch.restore()
    assert pipe.calls == 0 and pipe.unet is not None
