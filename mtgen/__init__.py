"""mtgen: one generator and one discriminator, trained on many tasks at once.

model = mtgen.load("digits-32")
model.sample(n=16, class_="seven").save("drawn")
model.predict("photo.png").rows
"""

from typing import TYPE_CHECKING

from mtgen.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from mtgen.inference.trained_model import TrainedModel

__all__ = ["__version__", "load"]


def load(path: "str | Path", device: str = "auto") -> "TrainedModel":
    """A trained model for use: a run by its folder or its name under `runs/`, an exported folder or file, or one checkpoint.

    Needs torch, NumPy, Pillow, pydantic, PyYAML and safetensors; and DALI only where a sound is given.

    Args:
        device: "cpu", "cuda", or "auto": cuda where there is one.

    Raises:
        CheckpointError: there is no such model, it is damaged, or another version of mtgen wrote it.
    """
    from mtgen.inference import trained_model

    return trained_model.load(path, device)
