"""How samples are transformed into rows of a batch: everything but which samples, and when."""

from dataclasses import dataclass, field, replace

from mtgen.config import Config, SoundConfig
from mtgen.data.decode import Channels
from mtgen.data.index_build import OnDamage
from mtgen.data.tokenizer import BYTE_TOKENIZER, Tokenizer, open_tokenizer


@dataclass(frozen=True)
class TransformSpec:
    """The components to read of a sample, and how to transform them.

    Attributes:
        resolution: size of the output images: side of a square or (height, width), pixels.
        channels: "rgb" or "gray".
        components: components to read besides the image: "class", "mask", "boxes", "tags", "caption", "sound".
        seed: key of the random numbers of all augmentations.
        crop, flip: see `mtgen.data.geometry.window`.
        color_jitter: strength, see `mtgen.data.color_jitter.color_jitter`; 0 for none.
        max_boxes: largest number of boxes of an image that are kept.
        max_tokens: largest number of tokens of a caption that are kept.
        tokenizer: tokenizer of the captions.
        sound: settings of the spectrograms.
        on_damage: "stop" raises `DamagedSample`; "skip" replaces the sample by another one with the same components.
        device: "cpu", or "cuda" to decode on the GPU.
        threads: number of threads that DALI decodes with.
    """

    resolution: int | tuple[int, int]
    channels: Channels
    components: tuple[str, ...] = ("class", "mask")
    seed: int = 0
    crop: float = 1.0
    flip: bool = False
    color_jitter: float = 0.0
    max_boxes: int = 32
    max_tokens: int = 64
    tokenizer: Tokenizer = BYTE_TOKENIZER
    sound: SoundConfig = field(default_factory=SoundConfig)
    on_damage: OnDamage = "stop"
    device: str = "cpu"
    threads: int = 1

    @property
    def plain(self) -> "TransformSpec":
        """The same without augmentation and replacements: a sample is the same each time it is read."""
        return replace(self, crop=1.0, flip=False, color_jitter=0.0, on_damage="stop")


def transform_spec_of(config: Config, device: str = "cpu", threads: int = 1) -> TransformSpec:
    """The transform of a run, with the components that its tasks and conditions need.

    Raises:
        DataError: the tokenizer cannot be read.
    """
    data = config.data
    return TransformSpec(
        config.size,
        data.channels,
        config.components,
        seed=config.seed,
        crop=data.crop,
        flip=data.flip,
        color_jitter=data.color_jitter,
        max_boxes=data.max_boxes,
        max_tokens=config.caption_tokens,
        tokenizer=open_tokenizer(data.tokenizer),
        sound=data.sound,
        on_damage=data.on_damage,
        device=device,
        threads=threads,
    )
