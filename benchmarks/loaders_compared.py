"""One loader of images, measured alone on one CPU; `data_speed.py` runs this file once for each, with the Python that has it.

It imports nothing of mtgen but where mtgen itself is measured, so that loaders with other requirements run in an environment of their own.
What every loader does: decode JPEG or PNG and mask, cut the window, resize with antialiasing (masks to the nearest pixel), mirror, scale to
[-1, 1], and stack to batches.
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


def tar_samples(folder: Path, split: str = "train") -> Iterator[dict[str, Any]]:
    """Every sample of a split as stored: `image`, `mask` or b"", `label` or -1, `key`."""
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
    """The shards of a split, by name."""
    return sorted(str(path) for path in folder.glob(f"{split}-*.tar"))


def window(width: int, height: int, crop: float, draw: random.Random) -> tuple[int, int, int, int]:
    """A random-resized crop (Szegedy et al. 2015), or the largest centered square where `crop` is 1: left, top, right, bottom."""
    if crop == 1:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side
    area = draw.uniform(crop, 1) * width * height
    aspect = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = draw.randint(0, width - w), draw.randint(0, height - h)
    return left, top, left + w, top + h


class Pillow:
    """Decode and transform one sample with Pillow, as most training scripts do."""

    def __init__(self, size: int, crop: float, flip: bool) -> None:
        self.size = size
        self.crop = crop
        self.flip = flip
        self.draw = random.Random(0)

    def __call__(self, image: bytes, mask: bytes) -> tuple[Any, Any]:
        import numpy as np
        from PIL import Image

        picture = Image.open(io.BytesIO(image)).convert("RGB")
        box = window(*picture.size, self.crop, self.draw)
        mirror = self.flip and self.draw.random() < 0.5
        to = (self.size, self.size)
        pixels = (
            np.asarray(picture.resize(to, Image.Resampling.BILINEAR, box=box), np.float32).transpose(2, 0, 1) / 127.5
            - 1
        )
        classes = (
            np.asarray(Image.open(io.BytesIO(mask)).resize(to, Image.Resampling.NEAREST, box=box), np.int64)
            if mask
            else None
        )
        if mirror:
            pixels, classes = pixels[..., ::-1], None if classes is None else classes[..., ::-1]
        return pixels, classes


def stacked(samples: Iterator[tuple[Any, Any]], batch: int) -> Iterator[int]:
    """Samples -> batches of torch tensors; yields how many samples a batch has."""
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
    """A DALI pipeline over encoded images and masks; its tensors are copied out, as training needs them."""
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
    draw = random.Random(0)

    def rows() -> tuple[list[Any], list[Any]]:
        chosen = [kept[draw.randrange(len(kept))] for _ in range(a.batch)]
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

    loader = Loader(
        open_index(a.data, "train"),
        TransformSpec(
            a.size,
            "rgb",
            tuple(a.components.split(",")) if a.components else TransformSpec.components,
            crop=a.crop,
            flip=a.flip,
        ),
        batch_size=a.batch,
        rank=0,
        world=1,
    )
    with loader:
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


def main() -> None:
    """Print images per second and CPU time an image of one contender as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=LOADERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for data in the contender's own format")
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
    cpu = (
        (time.process_time() - used) / count * 1e6
    )  # of all threads: what a machine that is busy with other work does not change
    print(json.dumps({"images_per_second": speed, "cpu_us_per_image": cpu, "first_batch_seconds": first}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # some loaders' threads do not end by themselves


if __name__ == "__main__":
    main()
