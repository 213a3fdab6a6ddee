"""mtgen: one generator and one discriminator, trained on many tasks at once.

model = mtgen.load("digits-32")
model.sample(n=16, class_="seven").save("generated")
model.predict("photo.png").rows
"""

from typing import TYPE_CHECKING

from mtgen.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from mtgen.inference.trained_model import TrainedModel

__all__ = ["__version__", "load"]


def load(path: "str | Path", device: str = "auto") -> "TrainedModel":
    """Load a trained model: a run (folder, or name under `runs/`), an exported folder or file, or one checkpoint.

    Needs torch, NumPy, Pillow, pydantic, PyYAML and safetensors; DALI only for sounds.

    Args:
        device: "cpu", "cuda", or "auto": cuda if available.

    Raises:
        CheckpointError: the model does not exist, is damaged, or was written by an incompatible version of mtgen.
    """
    from mtgen.inference import trained_model

    return trained_model.load(path, device)
