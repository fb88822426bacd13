"""A run as events: what is told, in which order; overruled; stopped from another thread; and the public names."""

import subprocess
import sys
import threading

import pytest
import torch
from test_select import ARGUMENTS, PrefersSeeds
from tiny import tiny_sd

import probeselect
from probeselect import Finished, Judged, Kept, Scored, SelectiveSampler, Stopped, Until, UsageError
from probeselect.backbones.loading import load_backbone

PICTURES = {**ARGUMENTS, "output_type": "pil"}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


def reds(pictures, prompts):
    return [float(picture.resize((1, 1)).getpixel((0, 0))[0]) for picture in pictures]


def test_everything_is_told_once_and_in_order(backbone):
    sampler = SelectiveSampler(backbone, PrefersSeeds(2, 1))
    run = sampler.stream(
        "a", n=4, k=2, rungs=[0.2, 0.5], evaluators=[reds], previews=True, policy="halving", **PICTURES
    )
    events = list(run)
    kinds = [(event.kind, event.candidate.seed) for event in events]
    assert kinds == [
        *[("scored", seed) for seed in range(4)],
        ("stopped", 0), ("kept", 1), ("kept", 2), ("stopped", 3),
        ("scored", 1), ("scored", 2), ("kept", 1), ("kept", 2),
        ("finished", 1), ("finished", 2), ("judged", 2), ("judged", 1),
    ]  # fmt: skip
    assert [type(event) for event in events[3:6]] == [Scored, Stopped, Kept] and isinstance(events[-1], Judged)
    assert [event.rung for event in events[:12]] == [0.2] * 8 + [0.5] * 4
    assert events[0].preview.size == (16, 16) and events[0].score == -100 and not events[0].last and events[3].last
    finished = [event for event in events if isinstance(event, Finished)]
    assert finished[0].candidate.image is not None and finished[0].flags == []
    assert events[-1].rewards == {"reds": run.results[0].kept[1].rewards["reds"]}
    assert [c.seed for c in run.results[0].kept] == [2, 1]
    assert run.results is run.results


def test_a_call_is_the_stream_read_to_its_end(backbone):
    sampler = SelectiveSampler(backbone, PrefersSeeds(2, 1))
    called, streamed = sampler("a", n=3, **ARGUMENTS), sampler.stream("a", n=3, **ARGUMENTS).results[0]
    assert [c.seed for c in called.kept] == [c.seed for c in streamed.kept] == [2]
    assert torch.equal(called.images[0], streamed.images[0])
    assert called.cost.denoiser_rows == streamed.cost.denoiser_rows


@pytest.mark.parametrize("answer", [[0, 3], [3], []])
def test_a_caller_may_overrule(backbone, answer):
    run = SelectiveSampler(backbone, PrefersSeeds(2)).stream("a", n=4, k=1, **ARGUMENTS)
    for event in run:
        if event.kind == "scored" and event.last:
            assert event.proposal == [2]
            event.keep(answer)
            assert event.proposal == answer
    (result,) = run.results
    assert [c.seed for c in result.kept] == answer
    assert [c.completed_steps for c in result.candidates] == [10 if seed in answer else 2 for seed in range(4)]
    for candidate in result.kept:
        generator = torch.Generator("cpu").manual_seed(candidate.seed)
        alone = backbone.pipe("a", generator=generator, **ARGUMENTS).images[0]
        assert torch.allclose(candidate.image, alone, atol=1e-5)


def test_overruling_what_cannot_be_is_refused(backbone):
    run = SelectiveSampler(backbone, PrefersSeeds(2)).stream("a", n=3, k=1, **ARGUMENTS)
    first = next(run)
    with pytest.raises(UsageError, match="keep: seed 7 does not run; running are 0, 1, 2"):
        first.keep([7])
    first.keep([first.candidate, 1])  # as it is, or by its seed
    kinds = [event.kind for event in run]
    assert kinds.count("kept") == 2
    with pytest.raises(UsageError, match="this rung is over"):
        first.keep([0])


def test_prompts_are_overruled_apart(backbone):
    run = SelectiveSampler(backbone, PrefersSeeds(2)).stream(["a", "b"], n=3, k=1, **ARGUMENTS)
    for event in run:
        if event.kind == "scored" and event.last and event.candidate.group == 1:
            event.keep([0])
    assert [[c.seed for c in r.kept] for r in run.results] == [[2], [0]]


@pytest.mark.parametrize(("after", "finished"), [(1, 0), (14, 1), (19, 1), (22, 2), (10**6, 3)])
def test_stopped_from_another_thread_it_keeps_what_is_done(backbone, after, finished):
    """3 candidates to step 2 of 10, then finished one by one, 8 steps each: 6, 14, 22, 30."""
    steps = []
    sampler = SelectiveSampler(backbone, PrefersSeeds(0, 1, 2), batch_size=1)

    def watch(done, planned):
        steps.append(done)
        if done == after:
            thread = threading.Thread(target=sampler.stop)
            thread.start()
            thread.join()

    result = sampler("a", n=3, k=3, progress=watch, **ARGUMENTS)
    assert len(result.kept) == sum(c.image is not None for c in result.candidates) == finished
    assert steps[-1] == min(after, 30) == result.cost.denoiser_rows  # no step is computed after it
    assert ("The run was stopped: what was finished by then is kept." in result.notes) == (after < 30)
    again = sampler("a", n=3, k=1, **ARGUMENTS)  # and the next call is whole
    assert len(again.kept) == 1 and again.cost.denoiser_rows == 3 * 2 + 8


def test_a_batch_is_bounded_where_nothing_is_said(backbone):
    result = SelectiveSampler(backbone, "random")(["a", "b"], n=20, k=1, **ARGUMENTS)
    assert {r.cost.largest_wave for r in result} == {20}  # 40 candidates in two batches of near-equal size
    wide = SelectiveSampler(backbone, "random", batch_size=40)(["a", "b"], n=20, k=1, **ARGUMENTS)
    assert {r.cost.largest_wave for r in wide} == {40}


def test_functions_and_names_stand_for_objects(backbone):
    sampler = SelectiveSampler(backbone, lambda stage: reds(stage.pictures, stage.prompts))
    result = sampler("a car", n=3, evaluators=["scene-check", reds], **PICTURES)
    assert set(result.kept[0].rewards) == {"scene-check", "reds"}
    best = max(result.candidates, key=lambda c: c.scores[0].score)
    assert best is result.kept[0]
    with pytest.raises(UsageError, match="gave 1 scores for 3 candidates"):
        SelectiveSampler(backbone, lambda stage: [1.0])("a", n=3, **PICTURES)
    with pytest.raises(UsageError, match="unknown evaluator 'taste'"):
        sampler("a", n=3, evaluators=["taste"], **PICTURES)
    with pytest.raises(UsageError, match="evaluators: 3 is no name"):
        sampler("a", n=3, evaluators=[3], **PICTURES)
    with pytest.raises(UsageError, match="scorer 3: is no name"):
        SelectiveSampler(backbone, 3)


def test_a_result_is_short_and_can_be_saved(backbone, tmp_path):
    result = SelectiveSampler(backbone, "random")(
        "a cat", n=3, stop=Until(999, rounds=2), evaluators=[reds], **PICTURES
    )
    assert repr(result) == f"<Result 'a cat': kept seed {result.kept[0].seed} of 6 candidates, 28 of 60 steps>"
    assert "<img" in result._repr_html_() and len(repr(result.candidates)) < 500
    assert sorted(path.name for path in result.save(tmp_path / "new").iterdir()) == [
        "contact_sheet.png", "result.json", f"seed-{result.kept[0].seed}.png",
    ]  # fmt: skip


def test_public_names_are_what_dir_shows():
    assert set(dir(probeselect)) == set(probeselect.__all__) == {"__version__", *probeselect._HOMES}
    for name in probeselect.__all__:
        assert getattr(probeselect, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = probeselect.nothing


def test_the_package_is_imported_without_what_is_slow():
    code = "import sys, probeselect; print(sorted({'torch', 'diffusers', 'numpy', 'msgspec'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_seconds_are_shared_by_steps_and_scoring_is_summed_over_rounds(backbone, monkeypatch):
    """By a clock that ticks once a look: every scoring takes one second, whatever the machine."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("probeselect.select.rounds.time.perf_counter", lambda: float(next(ticks)))
    given = {"n": 2, "rungs": [0.2, 0.4], "evaluators": [Rewards(9, 0, 9)], "stop": Until(5, rounds=3), **PICTURES}
    one, two = SelectiveSampler(backbone, PrefersSeeds(0, 2))(["a", "b"], **given)
    assert [len(result.decisions) for result in (one, two)] == [1, 2]
    assert two.cost.denoiser_rows == 2 * one.cost.denoiser_rows
    for name, whole in (("seconds_scoring", 4.0), ("seconds", float(next(ticks) - 1))):  # two rungs of two rounds
        assert getattr(one.cost, name) + getattr(two.cost, name) == pytest.approx(whole)
        assert getattr(two.cost, name) == pytest.approx(2 * getattr(one.cost, name))


class Rewards:
    """An evaluator that gives these rewards, in order."""

    name = "told"

    def __init__(self, *rewards):
        self.rewards = list(rewards)

    def features(self, images):
        return torch.tensor([[float(self.rewards.pop(0))] for _ in images])

    def score(self, features, prompts):
        return features[:, 0]


def test_an_evaluator_that_can_only_be_called_keeps_its_name(backbone):
    class Brightness:
        name, has_features = "brightness", False

        def __call__(self, images, prompts):
            return torch.tensor([float(image.convert("L").resize((1, 1)).getpixel((0, 0))) for image in images])

    result = SelectiveSampler(backbone, "random")("a", n=2, evaluators=[Brightness()], **PICTURES)
    assert list(result.kept[0].rewards) == ["brightness"]
