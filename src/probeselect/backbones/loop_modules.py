"""Which modules of a pipeline run inside its denoising loop, and which only before or after it.

Told by what a component is called in diffusers: encoders of texts and pictures, and decoders, stand outside; every
other module is watched, whatever it is (denoisers, second experts, control nets, guiders).
"""

import re
from typing import Any

from torch import nn

# Everything else is inside.
_OUTSIDE = re.compile(
    r"(.*_)?(text_encoder|image_encoder|vision_encoder|language_model|vision_language_encoder|text_decoder)(_\d+)?"
    r"|(.*_)?(vae|movq|vqgan|vqvae|vocoder|melgan|safety_checker|watermarker|latent_upsampler|vae_encoder|vae_decoder)"
    r"|feature_extractor|image_normalizer|depth_estimator|motion_adapter|siglip|bert|qformer|pe|prompt_enhancer(_head)?"
    r"|connectors|caption_.*|condition_encoder|image_embedder|diffusion_decoder|ocr_guider|shap_e_renderer"
)
# Of these only the effect on a denoiser counts, so that a replay needs no values of theirs.
_HELPER = re.compile(r"controlnet.*")


def loop_modules(pipe: Any) -> dict[str, nn.Module]:
    """The modules to watch, by their name in the pipeline; each once."""
    components = {name: value for name, value in pipe.components.items() if isinstance(value, nn.Module)}
    components |= {name: value for name, value in vars(pipe).items() if isinstance(value, nn.Module)}
    found: dict[str, nn.Module] = {}
    for name, module in components.items():
        if not _OUTSIDE.fullmatch(name) and all(module is not other for other in found.values()):
            found[name] = module
    return found


def is_helper(name: str) -> bool:
    """Whether a loop module only feeds a denoiser, as control nets do."""
    return _HELPER.fullmatch(name) is not None
