"""Names of numbers as people read them."""

ABBREVIATIONS = {
    "ap": "AP",
    "ap50": "AP50",
    "cas": "CAS",
    "fd": "FD",
    "fid": "FID",
    "iou": "IoU",
    "kd": "KD",
    "kid": "KID",
    "map": "mAP",
    "miou": "mIoU",
    "psnr": "PSNR",
    "ssim": "SSIM",
}


def title_of(name: str) -> str:
    """`mask_miou` -> "mask mIoU"."""
    return " ".join(ABBREVIATIONS.get(word, word) for word in name.split("_"))
