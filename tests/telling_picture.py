"""A picture that says more than it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngInfo

SECRETS = (b"52.5163", b"Canon", b"private comment", b"my prompt", b"xmpmeta", b"Exif", b"tEXt", b"iTXt", b"ICC")


def telling_picture(path: Path, form: str) -> Path:
    """A picture that says where, when, with what and from which prompt it was made; lying on its side."""
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Orientation], exif[Base.ImageDescription] = "Canon", 6, "private comment"
    exif.get_ifd(IFD.GPSInfo).update({GPS.GPSLatitudeRef: "N", GPS.GPSMapDatum: "52.5163"})
    text = PngInfo()
    text.add_text("parameters", "my prompt")
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>my prompt</x:xmpmeta>")
    options = {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    options |= {"PNG": {"pnginfo": text}, "JPEG": {"comment": b"private comment", "quality": 95, "subsampling": 0},
                "WEBP": {"xmp": b"<x:xmpmeta>", "lossless": True},
                "AVIF": {"xmp": b"<x:xmpmeta>", "quality": 100}}[form]   # fmt: skip
    across = np.zeros((40, 60, 3), np.uint8)
    across[:, :30] = 255   # white on the left
    Image.fromarray(across).save(path, form, **options)
    path.write_bytes(path.read_bytes() + b"private comment behind the end")
    return path
