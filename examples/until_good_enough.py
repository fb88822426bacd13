"""Fresh seeds, round after round, until the kept picture is good enough by an evaluator; then where the steps went."""

from probeselect import SelectiveSampler, Until

sampler = SelectiveSampler("embedded")
results = sampler(
    ["two dogs above a purple book", "a red car"], n=3, k=1, stop=Until(0.9, rounds=3), evaluators=["scene-check"],
    num_inference_steps=10, guidance_scale=3.0,
)  # fmt: skip
for result in results:
    print(result)
    for decision in result.decisions:
        print(f"  round {decision.round}: {decision.in_words()}")
    print(f"  {result.cost.denoiser_rows} steps, {result.cost.ratio:.0%} of finishing all that were opened")
