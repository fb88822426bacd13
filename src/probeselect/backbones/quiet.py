"""Keeps diffusers and transformers from talking on the terminal, where only our own words belong."""

import warnings


def quiet_libraries() -> None:
    """Their loading bars and notes stay away, for the life of the process."""
    import diffusers
    import transformers

    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|huggingface_hub)")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
