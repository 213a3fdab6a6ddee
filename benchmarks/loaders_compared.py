"""Measure one image loader on one CPU; `data_speed.py` runs this file once for each loader.

It imports mtgen only to measure mtgen, so that loaders with conflicting requirements can run in another environment.
Every loader does the same work: decode JPEG or PNG and the mask, crop, resize with antialiasing (masks to the nearest
pixel), mirror, scale to [-1, 1], and stack to batches.
"""

import argparse
import io
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ASPECT = (3 / 4, 4 / 3)
"""Range of the aspect ratio of random crops."""


def tar_samples(folder: Path, split: str = "train") -> Iterator[dict[str, Any]]:
    """Yield every sample of a split as stored: `image`, `mask` or b"", `label` or -1, `key`."""
    import webdataset

    for sample in webdataset.WebDataset(shards(folder, split), shardshuffle=False, empty_check=False):
        image = sample.get("jpg") or sample.get("png")
        yield {
            "image": image,
            "mask": sample.get("mask.png", b""),
            "label": int(sample.get("cls", b"-1")),
            "key": sample["__key__"],
        }


def shards(folder: Path, split: str = "train") -> list[str]:
    """Paths of the shards of a split, sorted."""
    return sorted(str(path) for path in folder.glob(f"{split}-*.tar"))


def window(width: int, height: int, crop: float, rng: random.Random) -> tuple[int, int, int, int]:
    """A random resized crop (Szegedy et al. 2015), or the largest centered square if `crop` is 1.

    Returns:
        Left, top, right, bottom.
    """
    if crop == 1:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side
    area = rng.uniform(crop, 1) * width * height
    aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    return left, top, left + w, top + h


class Pillow:
    """Decodes and transforms one sample with Pillow, as most training scripts do."""

    def __init__(self, size: int, crop: float, flip: bool) -> None:
        self.size = size
        self.crop = crop
        self.flip = flip
        self.rng = random.Random(0)

    def __call__(self, image: bytes, mask: bytes) -> tuple[Any, Any]:
        import numpy as np
        from PIL import Image

        picture = Image.open(io.BytesIO(image)).convert("RGB")
        box = window(*picture.size, self.crop, self.rng)
        mirror = self.flip and self.rng.random() < 0.5
        size = (self.size, self.size)
        picture = picture.resize(size, Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1
        classes = None
        if mask:
            resized = Image.open(io.BytesIO(mask)).resize(size, Image.Resampling.NEAREST, box=box)
            classes = np.asarray(resized, np.int64)
        if mirror:
            pixels, classes = pixels[..., ::-1], None if classes is None else classes[..., ::-1]
        return pixels, classes


def stacked(samples: Iterator[tuple[Any, Any]], batch: int) -> Iterator[int]:
    """Stack samples to batches of torch tensors; yields the number of samples in each batch."""
    import numpy as np
    import torch

    while True:
        rows = [next(samples) for _ in range(batch)]
        torch.from_numpy(np.stack([image for image, _ in rows]))
        if rows[0][1] is not None:
            torch.from_numpy(np.stack([mask for _, mask in rows]))
        yield batch


def webdataset_pillow(a: Any) -> Iterator[int]:
    import webdataset

    transform = Pillow(a.size, a.crop, a.flip)
    data = webdataset.WebDataset(shards(a.data), shardshuffle=100, resampled=True, empty_check=False).shuffle(1000)
    return stacked((transform(s.get("jpg") or s.get("png"), s.get("mask.png", b"")) for s in data), a.batch)


def streaming_pillow(a: Any) -> Iterator[int]:
    from streaming import MDSWriter, StreamingDataset

    folder = a.work / "mds"
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"image": "bytes", "mask": "bytes", "label": "int"}) as writer:
            for sample in tar_samples(a.data):
                writer.write({name: sample[name] for name in ("image", "mask", "label")})
    transform = Pillow(a.size, a.crop, a.flip)
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=a.batch)

    def forever() -> Iterator[tuple[Any, Any]]:
        while True:
            for sample in data:
                yield transform(sample["image"], sample["mask"])

    return stacked(forever(), a.batch)


def litdata_pillow(a: Any) -> Iterator[int]:
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = a.work / "litdata"
    if not folder.exists():
        writer = BinaryWriter(str(folder), chunk_bytes="64MB")
        for number, sample in enumerate(tar_samples(a.data)):
            writer[number] = {name: sample[name] for name in ("image", "mask", "label")}
        writer.done()
        writer.merge()
    transform = Pillow(a.size, a.crop, a.flip)
    data = StreamingDataset(str(folder), shuffle=True)

    def forever() -> Iterator[tuple[Any, Any]]:
        while True:
            for sample in data:
                yield transform(sample["image"], sample["mask"])

    return stacked(forever(), a.batch)


def _dali(a: Any, source: Callable[[], tuple[Any, Any]], masks: bool) -> Iterator[int]:
    """Run a DALI pipeline over encoded images and masks, and copy its tensors out, as training must do."""
    import numpy as np
    import torch
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(a.batch, 1, None, seed=0, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    with pipeline:
        image, mask = source()
        mirror = fn.random.coin_flip(probability=0.5 if a.flip else 0.0)
        if a.crop < 1:
            anchor, shape = fn.random_crop_generator(
                fn.peek_image_shape(image), random_area=(a.crop, 1.0), random_aspect_ratio=ASPECT
            )
        else:
            full = fn.cast(fn.peek_image_shape(image)[:2], dtype=types.INT32)
            side = fn.reductions.min(full)
            shape = fn.stack(side, side)
            anchor = (full - shape) // 2

        def square(encoded: Any, color: Any, **how: Any) -> Any:
            cut = fn.decoders.image_slice(encoded, anchor, shape, axes=[0, 1], output_type=color, device="cpu")
            return fn.resize(cut, size=[a.size, a.size], **how)

        pixels = square(image, types.RGB, interp_type=types.INTERP_LINEAR, antialias=True)
        outputs = [
            fn.crop_mirror_normalize(
                pixels, mirror=mirror, mean=[127.5], std=[127.5], dtype=types.FLOAT, output_layout="CHW"
            )
        ]
        if masks:
            outputs.append(fn.flip(square(mask, types.GRAY, interp_type=types.INTERP_NN), horizontal=mirror))
        pipeline.set_outputs(*outputs)
    pipeline.build()
    while True:
        for output in pipeline.run():
            torch.from_numpy(np.array(output.as_tensor()))
        yield a.batch


def dali_reader(a: Any) -> Iterator[int]:
    from nvidia.dali import fn

    masks = a.masks
    extensions = ["jpg;png", "mask.png"] if masks else ["jpg;png"]

    def source() -> tuple[Any, Any]:
        read = fn.readers.webdataset(
            paths=shards(a.data),
            ext=extensions,
            random_shuffle=True,
            initial_fill=1000,
            missing_component_behavior="error",
        )
        return (read[0], read[1]) if masks else (read[0] if isinstance(read, list | tuple) else read, None)

    return _dali(a, source, masks)


def dali_memory(a: Any) -> Iterator[int]:
    import numpy as np
    from nvidia.dali import fn

    kept = [
        (np.frombuffer(s["image"], np.uint8), np.frombuffer(s["mask"] or b"\0", np.uint8)) for s in tar_samples(a.data)
    ]
    rng = random.Random(0)

    def rows() -> tuple[list[Any], list[Any]]:
        chosen = [kept[rng.randrange(len(kept))] for _ in range(a.batch)]
        return [image for image, _ in chosen], [mask for _, mask in chosen]

    def source() -> tuple[Any, Any]:
        image, mask = fn.external_source(source=rows, num_outputs=2, batch=True)
        return image, mask

    return _dali(a, source, a.masks)


def jpeg_alone(a: Any) -> Iterator[int]:
    import simplejpeg

    kept = [s["image"] for s in tar_samples(a.data)]
    while True:
        for image in kept:
            simplejpeg.decode_jpeg(image)
            yield 1


def mtgen(a: Any) -> Iterator[int]:
    from mtgen.data.index import open_index
    from mtgen.data.loader import Loader
    from mtgen.data.transform_spec import TransformSpec

    components = tuple(a.components.split(",")) if a.components else TransformSpec.components
    spec = TransformSpec(a.size, "rgb", components, crop=a.crop, flip=a.flip)
    with Loader(open_index(a.data, "train"), spec, batch_size=a.batch, rank=0, world=1) as loader:
        for batch in loader:
            yield len(batch)


LOADERS: dict[str, Callable[[Any], Iterator[int]]] = {
    "mtgen": mtgen,
    "webdataset + Pillow": webdataset_pillow,
    "DALI's webdataset reader": dali_reader,
    "mosaicml-streaming + Pillow": streaming_pillow,
    "litdata + Pillow": litdata_pillow,
    "limit: libjpeg-turbo decoding alone": jpeg_alone,
    "limit: the DALI graph on bytes in memory": dali_memory,
}
"""Loader -> a generator that yields the number of images of each batch."""


def main() -> None:
    """Measure one loader; print images per second and CPU time per image as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=LOADERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for data in the loader's own format")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--crop", type=float, default=1.0)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--components", default="")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    a = parser.parse_args()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    import torch

    torch.set_num_threads(1)
    batches = LOADERS[a.name](a)
    begin = time.monotonic()
    next(batches)
    first = time.monotonic() - begin
    warm = time.monotonic() + a.seconds / 4
    while time.monotonic() < warm:
        next(batches)
    count, begin, used = 0, time.monotonic(), time.process_time()
    while time.monotonic() < begin + a.seconds:
        count += next(batches)
    speed = count / (time.monotonic() - begin)
    cpu = (time.process_time() - used) / count * 1e6  # of all threads; independent of other work on the machine
    print(json.dumps({"images_per_second": speed, "cpu_us_per_image": cpu, "first_batch_seconds": first}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # the threads of some loaders never end


if __name__ == "__main__":
    main()
