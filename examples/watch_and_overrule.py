"""Watch candidates live and overrule the policy once: the seed that the probe likes least goes on too."""

from probeselect import SelectiveSampler

sampler = SelectiveSampler("embedded")  # or a diffusers pipeline of your own
given = {"n": 5, "k": 1, "rungs": [0.2, 0.4], "previews": True, "num_inference_steps": 20, "guidance_scale": 3.0}
run = sampler.stream("two dogs above a purple book", **given)
for event in run:
    seed = event.candidate.seed
    if event.kind == "scored":
        print(f"seed {seed} at {event.rung:.0%}: score {event.score:.3f}, preview {event.preview.size} px")
        if event.last and event.rung < 0.3:  # all five are scored: now is the time to overrule
            worst = min(event.others, key=lambda candidate: candidate.scores[-1].score)
            event.keep([*event.proposal, worst])
    elif event.kind == "finished":
        event.candidate.image.save(f"seed-{seed}.png")
    else:
        print(f"seed {seed}: {event.kind}")
print(run.results[0])
