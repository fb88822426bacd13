"""Stage `denoiser`: the U-Net (v-prediction, zero terminal SNR), and the text encoder with it.

The loss weighs the objects' boxes: without that, plain background is most of what it learns. Latents are made once.
"""

import json
import random
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from probeselect.embedded.captions import caption, parse, split_of
from research.embedded.optim import MuonAdamW, split_parameters
from research.embedded.render import Placed
from research.embedded.state import Log, TrainingState, draw_sample, quick_arithmetic, rate_at, steps_of
from research.embedded.text import WIDTH, new_tokenizer, tokenize

OBJECT_WEIGHT = 4.0
CAPTION_DROPOUT = 0.1
LATENT_SIZE = 16


class Generator(nn.Module):
    """What trains together: denoiser and text encoder."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=(2, 4, 6),  # diffusers' name for the number of heads
            norm_num_groups=16,
            use_linear_projection=True,
        )
        self.text_encoder = text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        states = self.text_encoder(input_ids).last_hidden_state  # [N, L, D]
        return self.unet(noisy, timesteps, states).sample


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,  # of no effect under trailing spacing; diffusers warns without it
    )


def object_mask(objects: tuple[Placed, ...]) -> Tensor:
    """bool [16, 16]: the latent cells that an object's box covers."""
    mask = torch.zeros(LATENT_SIZE, LATENT_SIZE, dtype=torch.bool)
    for placed in objects:
        low = [int((centre - placed.side / 2) / 4) for centre in (placed.y, placed.x)]
        high = [int((centre + placed.side / 2) / 4) + 1 for centre in (placed.y, placed.x)]
        mask[max(low[0], 0) : high[0], max(low[1], 0) : high[1]] = True
    return mask


@torch.no_grad()
def make_latents(work: Path, autoencoder: AutoencoderTiny, count: int) -> tuple[Tensor, Tensor, list[str]]:
    """Latents fp16 [count, 4, 16, 16], object masks [count, 16, 16] and captions of `count` renders; made once."""
    path, captions_path = work / "latents.safetensors", work / "captions.json"
    if not path.exists():
        latents, masks, captions = [], [], []
        for start in range(0, count, 64):
            samples = [draw_sample(random.Random(f"latents:{i}")) for i in range(start, min(start + 64, count))]
            images = torch.stack([s.image for s in samples]).to(memory_format=torch.channels_last)
            latents.append(autoencoder.encoder(images).half())
            masks += [object_mask(s.scene.objects) for s in samples]
            captions += [s.caption for s in samples]
        captions_path.write_text(json.dumps(captions))
        save_file({"latents": torch.cat(latents).contiguous(), "masks": torch.stack(masks)}, path)
    stored = load_file(path)
    return stored["latents"], stored["masks"], json.loads(captions_path.read_text())


def another_caption(text: str, rng: random.Random) -> str:
    """The same scene said by a template drawn anew, of the train split as before."""
    again = caption(parse(text), rng)
    return again if split_of(again) == "train" else text


def draw_batch(captions: list[str], batch: int, rng: random.Random) -> tuple[list[int], list[str]]:
    """Which renders, and what is said of them: the caption anew, or nothing, which guidance needs."""
    rows = [rng.randrange(len(captions)) for _ in range(batch)]
    return rows, ["" if rng.random() < CAPTION_DROPOUT else another_caption(captions[i], rng) for i in rows]


def weighted_error(predicted: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """Mean squared error of [B, 4, 16, 16], objects' cells (masks [B, 16, 16]) weighed by OBJECT_WEIGHT."""
    weight = 1 + (OBJECT_WEIGHT - 1) * masks.float()[:, None]  # [B, 1, 16, 16]
    return (weight * (predicted.float() - target) ** 2).mean()


def train(
    work: Path,
    autoencoder: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    steps: int,
    images: int,
    batch: int = 128,
    start: Path | None = None,
) -> Generator:
    """Train for `steps` in all, resuming; a first run begins from the pipeline folder `start` when given."""
    latents, masks, captions = make_latents(work, autoencoder, images)
    tokenizer, scheduler = new_tokenizer(), new_scheduler()
    torch.manual_seed(3)
    module = Generator(text_encoder)
    if start is not None:
        module.unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet", dtype=torch.float32)
        module.text_encoder = CLIPTextModel.from_pretrained(start, subfolder="text_encoder", dtype=torch.float32)
    module.unet.set_attn_processor(AttnProcessor())  # its backward is quicker than SDPA's on a CPU
    optimizer = MuonAdamW(*split_parameters(module, ("text_encoder", "unet.conv_in", "unet.conv_out")))
    state = TrainingState(work / "denoiser.safetensors", module, optimizer)
    log = Log(work / "denoiser.jsonl", steps)
    module.train()
    for step, rng in steps_of(state, steps, "denoiser", save_every=100):
        rows, texts = draw_batch(captions, batch, rng)
        clean = latents[rows].float()  # [B, 4, 16, 16]
        noise = torch.randn_like(clean)
        timesteps = ((torch.arange(batch) + torch.rand(batch)) / batch * 1000).long()  # stratified over [0, 1000)
        target = scheduler.get_velocity(clean, noise, timesteps)
        noisy, ids = scheduler.add_noise(clean, noise, timesteps), tokenize(tokenizer, texts)
        with quick_arithmetic():
            predicted = module(noisy, timesteps, ids)
        loss = weighted_error(predicted, target, masks[rows])
        state.update(loss, rate_at(step, steps, peak=2e-3))
        log.add(state.step, batch, loss=loss.item())
    state.use_ema()
    return module


def assemble(autoencoder: AutoencoderTiny, generator: Generator) -> StableDiffusionPipeline:
    """The stock pipeline made of the trained parts."""
    generator.unet.set_default_attn_processor()
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=generator.text_encoder,
        tokenizer=new_tokenizer(),
        unet=generator.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(pipe: DiffusionPipeline, folder: Path) -> None:
    """Write the pipeline in fp16; where its parts were loaded from is nobody's business."""
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    for path in folder.glob("*/config.json"):
        fields = json.loads(path.read_text())
        fields.pop("_name_or_path", None)
        path.write_text(json.dumps(fields, indent=2) + "\n")
