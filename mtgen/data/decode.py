"""Encoded images and masks -> tensors: decode, cut, resize, mirror; the same geometry for both.

On a GPU all of it is one DALI graph. On a CPU DALI decodes and cuts, and torch resizes: its 8-bit kernel does with antialiasing what DALI's
does, to one gray level, in an eighth of the time.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.tensors import TensorCPU, TensorListCPU
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mtgen.data.geometry import Window
from mtgen.data.image_io import pixels, resized, to_unit_range
from mtgen.data.pipeline import VALIDATE_HINT, Pipelines, dali_reason
from mtgen.errors import DamagedSample
from mtgen.schema import IGNORE_INDEX

Channels = Literal["rgb", "gray"]


def _pixel() -> bytes:
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    return file.getvalue()


_NO_MASK = _pixel()  # what DALI decodes where a sample has no mask


def single_threaded() -> None:
    """Begin a thread that decodes: torch's operators run in it and start no threads of their own. Others keep the number they have."""
    torch.set_num_threads(1)


class ImageDecoder:
    """A DALI pipeline for batches of up to `batch` samples; images are taken as they are displayed, EXIF orientation applied.

    Args:
        resolution: side of the squares that come out, pixels; or their (height, width).
        channels: "rgb" or "gray".
        threads: DALI's own threads.
        device: where the pipeline decodes and its tensors lie, "cpu" or "cuda"; "cuda" without a number is torch's current device.
        batch: largest number of samples at once.
        masks: whether there are masks to decode.
        whole: every window is its whole image: then DALI is neither told of it nor cuts, a tenth of the time of a small image.
    """

    def __init__(
        self,
        resolution: int | tuple[int, int],
        channels: Channels,
        threads: int,
        device: str,
        batch: int,
        masks: bool = True,
        whole: bool = False,
    ) -> None:
        self.size = (resolution, resolution) if isinstance(resolution, int) else resolution
        self.channels = channels
        self.masks = masks
        self.whole = whole
        self.threads = threads
        self.batch = batch
        self.device = torch.device(device)
        if self.device == torch.device("cuda"):  # settled here: a thread that decodes has a current device of its own
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._pipelines = Pipelines(self._build, batch)
        several = threads > 1 and self.device.type == "cpu"
        self._map: Any = ThreadPoolExecutor(threads, "mtgen resize", single_threaded).map if several else map

    @property
    def rebuilds(self) -> int:
        """How often the pipeline failed on a damaged sample and was built again."""
        return self._pipelines.rebuilds

    def decode(
        self, images: Sequence[bytes], masks: Sequence[bytes | None], window: Window, name: Callable[[int], str]
    ) -> tuple[Tensor, Tensor]:
        """Encoded samples and their windows -> image `[B,C,H,W]` float32 in [-1,1], mask `[B,H,W]` int64, 255 where there is none.
        Without masks at all, it is one number, expanded: not to be written to.

        Args:
            images, masks: files as stored; `None` for a mask that is missing.
            window: what is cut out of each.
            name: says which sample row `i` is, for errors.

        Raises:
            DamagedBatch: holds every sample that cannot be decoded; those it does not name decode without them.
            DataError: the samples decode alone and not together.
        """

        def damage(row: int) -> DamagedSample | None:
            return self.check_one(images[row], masks[row], window.row(row), name(row))

        return self._pipelines.run_batch(
            lambda pipeline: self._run(pipeline, images, masks, window), range(len(images)), damage, name
        )

    def check_one(self, image: bytes, mask: bytes | None, window: Window, name: str) -> DamagedSample | None:
        """What is wrong with one sample in its window `[1]`, decoded by itself; the pipeline for batches is not touched.

        DALI alone is the judge, so that the verdict does not depend on the samples beside it; Pillow words it.
        """
        try:
            self._pipelines.run_one(lambda pipeline: self._run(pipeline, [image], [mask], window))
        except RuntimeError as error:
            for what, data in (("image", image), ("mask", mask)):
                try:
                    if data is not None:
                        pixels(data)
                except ValueError as reason:
                    return DamagedSample(what, name, f"{what}: {reason}; {VALIDATE_HINT}")
            return DamagedSample("image", name, f"DALI cannot decode it: {dali_reason(error)}; {VALIDATE_HINT}")
        return None

    def _build(self, batch: int) -> Pipeline:
        cuda = self.device.type == "cuda"
        pipeline = Pipeline(
            batch,
            self.threads,
            self.device.index if cuda else None,
            prefetch_queue_depth=1,
            exec_async=cuda,
            exec_pipelined=cuda,
        )
        with pipeline:
            mirror: Any = (
                fn.external_source(name="mirror", dtype=DALIDataType.INT32, ndim=0) if cuda or self.masks else None
            )

            def cut(source: str, color: Any) -> Any:
                encoded = fn.external_source(name=source, dtype=DALIDataType.UINT8, ndim=1)
                how = {"device": "mixed" if cuda else "cpu", "output_type": color, "adjust_orientation": True}
                if self.whole:
                    return fn.decoders.image(encoded, **how)
                start, size = (
                    fn.external_source(name=f"{source} {edge}", dtype=DALIDataType.INT32, ndim=1)
                    for edge in ("start", "size")
                )
                return fn.decoders.image_slice(encoded, start=start, shape=size, **how)

            side = list(self.size)
            image: Any = cut("image", DALIImageType.RGB if self.channels == "rgb" else DALIImageType.GRAY)
            if cuda:
                image = fn.resize(image, size=side, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)
                image = fn.crop_mirror_normalize(
                    image, mirror=mirror, mean=[127.5], std=[127.5], dtype=DALIDataType.FLOAT, output_layout="CHW"
                )
            outputs = [image]
            if self.masks:
                mask: Any = fn.resize(cut("mask", DALIImageType.GRAY), size=side, interp_type=DALIInterpType.INTERP_NN)
                outputs.append(fn.flip(mask, horizontal=mirror))
            pipeline.set_outputs(*outputs)
        pipeline.build()
        return pipeline

    def _run(
        self, pipeline: Pipeline, images: Sequence[bytes], masks: Sequence[bytes | None], window: Window
    ) -> tuple[Tensor, Tensor]:
        def feed(source: str, files: Sequence[bytes], start: NDArray[np.int32], size: NDArray[np.int32]) -> None:
            tensors = [
                TensorCPU(np.frombuffer(data, np.uint8)) for data in files
            ]  # made here: DALI would ask each array what it is
            pipeline.feed_input(source, TensorListCPU(tensors))
            if not self.whole:
                pipeline.feed_input(f"{source} start", start)
                pipeline.feed_input(f"{source} size", size)

        if self.device.type == "cuda" or self.masks:
            pipeline.feed_input("mirror", window.mirror.astype(np.int32))
        feed("image", images, window.start, window.size)
        if self.masks:
            missing = np.array([data is None for data in masks])
            there = ~missing[:, None]
            feed(
                "mask",
                [data or _NO_MASK for data in masks],
                window.start * there,
                np.where(there, window.size, 1).astype(np.int32),
            )
        image, *mask = pipeline.run()
        pixels = from_dlpack(image.as_tensor()).clone() if self.device.type == "cuda" else self._resized(image, window)
        shape = (len(images), *self.size)
        if not mask:  # one number, and no memory to fill with it
            return pixels, torch.full((), IGNORE_INDEX, dtype=torch.int64, device=self.device).expand(shape)
        if self.device.type == "cuda":  # copies: DALI uses its buffers again
            label = from_dlpack(mask[0].as_tensor()).reshape(shape).long()
            label[torch.from_numpy(missing)] = IGNORE_INDEX
            return pixels, label
        values = np.array(mask[0].as_tensor(), dtype=np.int64).reshape(shape)
        values[missing] = IGNORE_INDEX  # in NumPy: torch would start its own pool of threads in a loader's thread
        return pixels, torch.from_numpy(values)

    def _resized(self, cut: Any, window: Window) -> Tensor:
        """What DALI cut out, `[h,w,C]` uint8 each -> `[B,C,H,W]` float32 in [-1,1], channels last in memory."""
        (height, width), rows, mirror = self.size, len(window.mirror), torch.from_numpy(window.mirror)
        if (window.size == (width, height)).all():
            pixels = torch.from_numpy(np.asarray(cut.as_tensor()))  # DALI's memory, until `to_unit_range` copies it
            if window.mirror.any():
                pixels = torch.where(mirror[:, None, None, None], pixels.flip(2), pixels)
        else:
            pixels = torch.empty(rows, height, width, 3 if self.channels == "rgb" else 1, dtype=torch.uint8)

            def resize(row: int) -> None:
                one = resized(torch.from_numpy(np.asarray(cut.at(row))), height, width)
                pixels[row] = one.flip(1) if mirror[row] else one

            list(self._map(resize, range(rows)))
        return to_unit_range(pixels)
