"""Encoded images and masks -> tensors: decode, crop, resize and mirror, with the same geometry for both.

On a GPU, all of it is one DALI graph. On a CPU, DALI decodes and crops, and torch resizes: its antialiasing 8-bit
kernel agrees with DALI's to one gray level and takes an eighth of the time.
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

from mtgen.data.device_stream import wait_for_copies
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


_NO_MASK = _pixel()  # decoded in place of a missing mask


def single_threaded() -> None:
    """Initialize a decoding thread: torch operators called in it start no threads. Other threads are not affected."""
    torch.set_num_threads(1)


class ImageDecoder:
    """A DALI pipeline for batches of up to `batch` samples; images are decoded as displayed (EXIF orientation applied).

    Args:
        resolution: side of the square output images, pixels; or their (height, width).
        channels: "rgb" or "gray".
        threads: number of DALI's threads.
        device: device that decodes and holds the output, "cpu" or "cuda"; "cuda" is torch's current device.
        batch: largest number of samples in a batch.
        masks: whether there are masks to decode.
        whole: every window covers its whole image, so that DALI need not crop (a tenth of the time of a small image).
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
        if self.device == torch.device("cuda"):  # resolved here: torch's current device differs between threads
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._pipelines = Pipelines(self._build, batch)
        parallel = threads > 1 and self.device.type == "cpu"
        self._map: Any = ThreadPoolExecutor(threads, "mtgen resize", single_threaded).map if parallel else map

    @property
    def rebuilds(self) -> int:
        """How many times the pipeline failed on a damaged sample and was rebuilt."""
        return self._pipelines.rebuilds

    def decode(
        self, images: Sequence[bytes], masks: Sequence[bytes | None], window: Window, name: Callable[[int], str]
    ) -> tuple[Tensor, Tensor]:
        """Decode and crop encoded samples -> image `[B,C,H,W]` float32 in [-1,1], mask `[B,H,W]` int64, 255 if missing.

        If the decoder has no masks, the mask is a single number expanded to that shape: do not write to it.

        Args:
            images, masks: files as stored; `None` for a missing mask.
            window: crop window of each sample.
            name: returns the name of the sample in row `i`, for errors.

        Raises:
            DamagedBatch: holds every sample that cannot be decoded; the other ones decode without them.
            DataError: the samples decode one at a time, but not together.
        """

        def check(row: int) -> DamagedSample | None:
            return self.check_one(images[row], masks[row], window.row(row), name(row))

        return self._pipelines.run_batch(
            lambda pipeline: self._run(pipeline, images, masks, window), range(len(images)), check, name
        )

    def check_one(self, image: bytes, mask: bytes | None, window: Window, name: str) -> DamagedSample | None:
        """Decode one sample alone in its window `[1]` and return what is wrong with it.

        DALI alone decides, in a pipeline for single samples, so that the verdict does not depend on the rest of the
        batch. Pillow only provides a better message.
        """
        try:
            self._pipelines.run_one(lambda pipeline: self._run(pipeline, [image], [mask], window))
        except RuntimeError as error:
            for component, data in (("image", image), ("mask", mask)):
                try:
                    if data is not None:
                        pixels(data)
                except ValueError as reason:
                    return DamagedSample(component, name, f"{component}: {reason}; {VALIDATE_HINT}")
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
            size = list(self.size)
            image: Any = self._decode_node("image", DALIImageType.RGB if self.channels == "rgb" else DALIImageType.GRAY)
            if cuda:
                image = fn.resize(image, size=size, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)
                image = fn.crop_mirror_normalize(
                    image, mirror=mirror, mean=[127.5], std=[127.5], dtype=DALIDataType.FLOAT, output_layout="CHW"
                )
            outputs = [image]
            if self.masks:
                mask: Any = self._decode_node("mask", DALIImageType.GRAY)
                mask = fn.resize(mask, size=size, interp_type=DALIInterpType.INTERP_NN)
                outputs.append(fn.flip(mask, horizontal=mirror))
            pipeline.set_outputs(*outputs)
        pipeline.build()
        return pipeline

    def _decode_node(self, source: str, color: Any) -> Any:
        """The graph node that decodes the input `source` and crops it; called while the pipeline is being built."""
        encoded = fn.external_source(name=source, dtype=DALIDataType.UINT8, ndim=1)
        options = {
            "device": "mixed" if self.device.type == "cuda" else "cpu",
            "output_type": color,
            "adjust_orientation": True,
        }
        if self.whole:
            return fn.decoders.image(encoded, **options)
        start, size = (
            fn.external_source(name=f"{source} {field}", dtype=DALIDataType.INT32, ndim=1)
            for field in ("start", "size")
        )
        return fn.decoders.image_slice(encoded, start=start, shape=size, **options)

    def _run(
        self, pipeline: Pipeline, images: Sequence[bytes], masks: Sequence[bytes | None], window: Window
    ) -> tuple[Tensor, Tensor]:
        def feed(source: str, files: Sequence[bytes], start: NDArray[np.int32], size: NDArray[np.int32]) -> None:
            # made here: given arrays, DALI would inspect each one
            pipeline.feed_input(source, TensorListCPU([TensorCPU(np.frombuffer(data, np.uint8)) for data in files]))
            if not self.whole:
                pipeline.feed_input(f"{source} start", start)
                pipeline.feed_input(f"{source} size", size)

        if self.device.type == "cuda" or self.masks:
            pipeline.feed_input("mirror", window.mirror.astype(np.int32))
        feed("image", images, window.start, window.size)
        if self.masks:
            missing = np.array([data is None for data in masks])
            given = ~missing[:, None]
            feed(
                "mask",
                [data or _NO_MASK for data in masks],
                window.start * given,
                np.where(given, window.size, 1).astype(np.int32),
            )
        image, *mask = pipeline.run()
        pixels = from_dlpack(image.as_tensor()).clone() if self.device.type == "cuda" else self._resize(image, window)
        shape = (len(images), *self.size)
        if not mask:  # one number, expanded: there is no memory to fill
            wait_for_copies(self.device)  # DALI writes its buffers again in the next run
            return pixels, torch.full((), IGNORE_INDEX, dtype=torch.int64, device=self.device).expand(shape)
        if self.device.type == "cuda":
            label = from_dlpack(mask[0].as_tensor()).reshape(shape).long()
            label[torch.from_numpy(missing)] = IGNORE_INDEX
            wait_for_copies(self.device)
            return pixels, label
        values = np.array(mask[0].as_tensor(), dtype=np.int64).reshape(shape)
        values[missing] = IGNORE_INDEX  # in NumPy: torch would start its own thread pool in a loader's thread
        return pixels, torch.from_numpy(values)

    def _resize(self, crops: Any, window: Window) -> Tensor:
        """DALI's crops, `[h,w,C]` uint8 each -> `[B,C,H,W]` float32 in [-1,1], channels-last in memory."""
        (height, width), rows, mirror = self.size, len(window.mirror), torch.from_numpy(window.mirror)
        if (window.size == (width, height)).all():
            pixels = torch.from_numpy(np.asarray(crops.as_tensor()))  # DALI's memory, until `to_unit_range` copies it
            if window.mirror.any():
                pixels = torch.where(mirror[:, None, None, None], pixels.flip(2), pixels)
        else:
            pixels = torch.empty(rows, height, width, 3 if self.channels == "rgb" else 1, dtype=torch.uint8)

            def resize_row(row: int) -> None:
                image = resized(torch.from_numpy(np.asarray(crops.at(row))), height, width)
                pixels[row] = image.flip(1) if mirror[row] else image

            list(self._map(resize_row, range(rows)))
        return to_unit_range(pixels)
