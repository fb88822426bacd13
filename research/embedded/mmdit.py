"""Stage `mmdit`: the other denoiser, an MMDiT as in Stable Diffusion 3, trained by flow matching, with its encoders.

The same scenes, autoencoder and latents as the U-Net's, which is its teacher besides. Prompts go through the stock
pipeline's own `encode_prompt`, so training sees what sampling will; one token of zeros stands for all, see
`embedded/attention.py`.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from probeselect.embedded.attention import ZeroTokensAttention
from research.embedded.denoiser import LATENT_SIZE, draw_batch, make_latents, weighted_error
from research.embedded.optim import MuonAdamW, split_parameters
from research.embedded.state import Log, TrainingState, quick_arithmetic, rate_at, steps_of
from research.embedded.text import MAX_TOKENS, WIDTH, new_tokenizer, text_config, tokenize

HEADS, HEAD_WIDTH, BLOCKS = 3, 64, 8
TEACHER_SHARE = 0.75  # of the loss: the teacher's velocity is what a single picture's is on the mean, without its noise


class Teacher:
    """The U-Net of the embedded backbone as a predictor of the velocity of a flow.

    A flow's latent x = (1 - s) x0 + s e is, divided by r = sqrt((1 - s)^2 + s^2), a diffusion's latent whose signal and
    noise lie at the angle atan2(s, 1 - s). From the U-Net's v = cos e - sin x0 there, the velocity e - x0 follows as
    ((2 s - 1) x / r + v) / r.
    """

    def __init__(self, folder: Path) -> None:
        self.pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        self.pipe.unet.set_attn_processor(AttnProcessor())
        kept = self.pipe.scheduler.alphas_cumprod.double()
        self.angles = torch.atan2((1 - kept).sqrt(), kept.sqrt())  # of its timesteps, rising

    @torch.no_grad()
    def __call__(self, noisy: Tensor, sigma: Tensor, texts: list[str]) -> Tensor:
        """Velocity [N, 4, 16, 16] at noise levels sigma [N] in (0, 1)."""
        r = ((1 - sigma) ** 2 + sigma**2).sqrt()[:, None, None, None]
        with quick_arithmetic():
            states = self.pipe.text_encoder(tokenize(self.pipe.tokenizer, texts)).last_hidden_state
            v = self.pipe.unet(noisy / r, self.timesteps(sigma), states).sample.float()
        return ((2 * sigma[:, None, None, None] - 1) * noisy / r + v) / r

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The timestep [N], a fraction between two, whose ratio of noise to signal is sigma / (1 - sigma)."""
        angle = torch.atan2(sigma, 1 - sigma).double()
        above = torch.searchsorted(self.angles, angle).clamp(1, len(self.angles) - 1)
        low, high = self.angles[above - 1], self.angles[above]
        return (above - 1 + ((angle - low) / (high - low)).clamp(0, 1)).float()


class FlowGenerator(nn.Module):
    """What trains together: the transformer and the two text encoders that Stable Diffusion 3's pipeline wants."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.transformer = SD3Transformer2DModel(
            sample_size=LATENT_SIZE,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=BLOCKS,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=HEADS * HEAD_WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=LATENT_SIZE // 2,
            qk_norm="rms_norm",
        )
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear) and (".norm" in name or name == "proj_out"):
                nn.init.zeros_(module.weight)  # every block begins as the identity (Peebles & Xie, 2023)
                nn.init.zeros_(module.bias)
        self.text_encoder, self.text_encoder_2 = (CLIPTextModelWithProjection(text_config()) for _ in range(2))
        for encoder in (self.text_encoder, self.text_encoder_2):
            encoder.text_model.load_state_dict(text_encoder.state_dict())

    def forward(self, noisy: Tensor, sigma: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        """Predicted velocity [N, 4, 16, 16] of noisy latents at noise levels sigma [N] in (0, 1)."""
        out: Tensor = self.transformer(noisy, states, pooled, 1000 * sigma).sample
        return out


def assemble(autoencoder: AutoencoderTiny, generator: FlowGenerator) -> StableDiffusion3Pipeline:
    """The stock pipeline made of the trained parts, without a T5."""
    return StableDiffusion3Pipeline(
        transformer=generator.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=generator.text_encoder,
        tokenizer=new_tokenizer(),
        text_encoder_2=generator.text_encoder_2,
        tokenizer_2=new_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def train(
    work: Path, backbone: Path, steps: int, images: int, batch: int = 128, start: Path | None = None
) -> tuple[AutoencoderTiny, FlowGenerator]:
    """Train for `steps` in all, resuming. `backbone` is the U-Net's pipeline: it lends its autoencoder, the beginning
    of the text encoders, and is the teacher. A first run begins from the pipeline folder `start` when given.
    """
    autoencoder = AutoencoderTiny.from_pretrained(backbone, subfolder="vae", dtype=torch.float32).requires_grad_(False)
    latents, masks, captions = make_latents(work, autoencoder, images)
    teacher = Teacher(backbone)
    torch.manual_seed(4)
    module = FlowGenerator(teacher.pipe.text_encoder)
    if start is not None:
        for name, part in module.named_children():
            kind: Any = type(part)
            part.load_state_dict(kind.from_pretrained(start, subfolder=name, dtype=torch.float32).state_dict())
    usual = module.transformer.attn_processors
    module.transformer.set_attn_processor(ZeroTokensAttention(MAX_TOKENS))
    encode = assemble(autoencoder, module).encode_prompt
    outside = ("text_encoder", "transformer.pos_embed", "transformer.proj_out")
    state = TrainingState(work / "mmdit.safetensors", module, MuonAdamW(*split_parameters(module, outside)))
    log = Log(work / "mmdit.jsonl", steps)
    module.train()
    for step, rng in steps_of(state, steps, "mmdit", save_every=100):
        rows, texts = draw_batch(captions, batch, rng)
        clean = latents[rows].float()  # [B, 4, 16, 16]
        noise = torch.randn_like(clean)
        sigma = (torch.arange(batch) + torch.rand(batch)) / batch  # stratified over (0, 1)
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        told = teacher(noisy, sigma, texts)
        with quick_arithmetic():
            predicted = module(noisy, sigma, *encoded(encode, texts))
        taught = weighted_error(predicted, told, masks[rows])
        seen = weighted_error(predicted, noise - clean, masks[rows])
        loss = TEACHER_SHARE * taught + (1 - TEACHER_SHARE) * seen
        state.update(loss, rate_at(step, steps, peak=2e-3))
        log.add(state.step, batch, taught=taught.item(), seen=seen.item())
    state.use_ema()
    module.transformer.set_attn_processor(usual)
    return autoencoder, module


def encoded(encode: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """What a pipeline's `encode` makes of texts, with one token of zeros: states [N, T + 1, D] and pooled [N, D]."""
    states, _, pooled, _ = encode(
        texts, None, None, do_classifier_free_guidance=False, device="cpu", max_sequence_length=1
    )
    return states, pooled
