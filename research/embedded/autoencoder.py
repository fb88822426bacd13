"""Stage `autoencoder`: between 64 x 64 x 3 pixels and 16 x 16 x 4 latents.

`AutoencoderTiny` of diffusers: no norms and no attention, so it is quick on a CPU. It sees 32 px crops around the
objects (four times cheaper, and nearly all of the detail), then whole pictures for the borders. The latents get
a little noise and a pull towards unit variance, so that the denoiser meets a smooth space.
"""

import random
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from research.embedded.state import Log, Sample, TrainingState, draw_sample, rate_at, steps_of

CHANNELS = 32
LATENT_NOISE = 0.1
CROP = 32


def new_autoencoder() -> AutoencoderTiny:
    torch.manual_seed(1)
    return AutoencoderTiny(
        encoder_block_out_channels=(CHANNELS,) * 3,
        decoder_block_out_channels=(CHANNELS,) * 3,
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)


def crop_around_object(sample: Sample, rng: random.Random) -> Tensor:
    """[3, 32, 32] near one of the objects, on the latent grid."""
    placed = rng.choice(sample.scene.objects)
    high = sample.image.shape[-1] - CROP
    left, top = (
        min(max(int(centre + rng.uniform(-14, 14)) - CROP // 2, 0), high) // 4 * 4 for centre in (placed.x, placed.y)
    )
    return sample.image[:, top : top + CROP, left : left + CROP]


def latent_divergence(latents: Tensor) -> Tensor:
    """KL of each channel's batch statistics from a unit normal; latents [N, C, H, W]."""
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    return 0.5 * (mean**2 + variance - variance.clamp_min(1e-6).log() - 1).mean()


def train(work: Path, steps: int, batch: int = 64) -> AutoencoderTiny:
    module = new_autoencoder()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=1e-4)
    state = TrainingState(work / "autoencoder.safetensors", module, optimizer)
    log = Log(work / "autoencoder.jsonl", steps)
    for step, rng in steps_of(state, steps, "autoencoder"):
        whole = step > 0.85 * steps or step % 8 == 0
        samples = [draw_sample(rng) for _ in range(batch // 4 if whole else batch)]
        images = torch.stack([s.image if whole else crop_around_object(s, rng) for s in samples])
        images = images.to(memory_format=torch.channels_last)  # [B, 3, S, S]
        latents = module.encoder(images)  # [B, 4, S/4, S/4]
        decoded = module.decoder(latents + LATENT_NOISE * torch.randn_like(latents))
        error = decoded - images
        mse = (error**2).mean()
        loss = mse + 0.1 * error.abs().mean() + 0.01 * latent_divergence(latents)
        state.update(loss, rate_at(step, steps, peak=2e-3))
        log.add(state.step, len(samples), loss=float(loss), psnr=float(-10 * torch.log10(mse / 4)))
    state.use_ema()
    return module


@torch.no_grad()
def psnr(module: AutoencoderTiny, count: int = 200) -> float:
    """Mean PSNR in dB of whole held-out pictures, no noise."""
    rng = random.Random("psnr")
    images = torch.stack([draw_sample(rng, "test").image for _ in range(count)])
    error = (module.decoder(module.encoder(images)).clamp(-1, 1) - images) ** 2
    return float((-10 * torch.log10(error.mean((1, 2, 3)) / 4)).mean())
