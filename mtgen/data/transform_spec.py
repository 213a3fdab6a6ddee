"""How samples are looked at: everything but which of them, and when."""

from dataclasses import dataclass, field, replace

from mtgen.config import Config, SoundConfig
from mtgen.data.decode import Channels
from mtgen.data.index_build import OnDamage
from mtgen.data.tokenizer import BYTE_TOKENIZER, Tokenizer, open_tokenizer


@dataclass(frozen=True)
class TransformSpec:
    """What is read of a sample and what becomes of it on its way into a batch.

    Attributes:
        resolution: of the images that come out: a square's side or (height, width), pixels.
        channels: "rgb" or "gray".
        components: what is read besides the image: "class", "mask", "boxes", "caption", "sound".
        seed: key of everything that varies from one look to the next.
        crop, flip: see `mtgen.data.geometry.window`.
        colour: see `mtgen.data.color_jitter.color_jitter`; 0 for none.
        boxes, tokens: how many boxes of an image, and tokens of a caption, are kept at most.
        tokenizer: what captions are turned into numbers by.
        sound: what sounds are turned into.
        on_damage: "stop" raises `DamagedSample`; "skip" puts another sample with the same components in its place.
        device: "cpu", or "cuda" to decode on the GPU.
        threads: that DALI decodes with.
    """

    resolution: int | tuple[int, int]
    channels: Channels
    components: tuple[str, ...] = ("class", "mask")
    seed: int = 0
    crop: float = 1.0
    flip: bool = False
    colour: float = 0.0
    boxes: int = 32
    tokens: int = 64
    tokenizer: Tokenizer = BYTE_TOKENIZER
    sound: SoundConfig = field(default_factory=SoundConfig)
    on_damage: OnDamage = "stop"
    device: str = "cpu"
    threads: int = 1

    @property
    def plain(self) -> "TransformSpec":
        """The same without anything that varies, and with no sample in another's place: every look at a sample is the same."""
        return replace(self, crop=1.0, flip=False, colour=0.0, on_damage="stop")


def transform_spec_of(config: Config, device: str = "cpu", threads: int = 1) -> TransformSpec:
    """How a run looks at its data: what its tasks and conditions read.

    Raises:
        DataError: its tokenizer cannot be read.
    """
    data = config.data
    return TransformSpec(
        config.size,
        data.channels,
        config.components,
        seed=config.seed,
        crop=data.crop,
        flip=data.flip,
        colour=data.color_jitter,
        boxes=data.max_boxes,
        tokens=config.caption_tokens,
        tokenizer=open_tokenizer(data.tokenizer),
        sound=data.sound,
        on_damage=data.on_damage,
        device=device,
        threads=threads,
    )
