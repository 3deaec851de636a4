"""Picture files: what is inside, checked from the header, and safe decoding to plain RGB.

What a file is, is decided by its content; the name plays no part.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image, ImageCms
from PIL.ExifTags import Base
from PIL.Image import Transpose
from torch import Tensor

from atelier.adapters.core.byte_size import format_bytes
from atelier.training.data.picture_parts import MAX_PARTS, has_too_many_parts

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF")
READABLE = "PNG, JPEG, WebP, AVIF or HEIC"
# How a picture of each format is saved; phones write the last two, which hardly any other program reads.
SAVED_AS = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WEBP", "AVIF": "JPEG", "HEIF": "JPEG"}
SUFFIX_OF = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
_ENCODING: dict[str, dict[str, Any]] = {
    "PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True, "method": 0}}   # fmt: skip
MAX_BYTES = 25_000_000
MAX_MEGAPIXELS = 40
MAX_SIDE = 16_384
MIN_SIDE = 16
SIGNATURE_BYTES = 1024

# A file of another kind is named, so that the person knows at once what to convert.
OTHER_KINDS = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (4, b"ftypqt", "a video"),
    (4, b"ftypcrx", "a raw photograph (CR3)"),
    (4, b"ftyp", "a video"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"\0\0\0\x0cjP", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"qoif", "a QOI picture"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance HDR picture"),
    (0, b"gimp xcf", "a GIMP document"),
    (0, b"\0\0\1\0", "an icon file"),
    (0, b"FUJIFILMCCD-RAW", "a raw photograph (RAF)"),
)
# What undoes each EXIF orientation.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
CONVERT = "Save it as PNG, JPEG or WebP and add it again."
_AVIF_BRANDS, _HEIF_BRANDS = (b"avif", b"avis"), (b"hei", b"hev", b"mif1", b"msf1")
DAMAGED = "Copy or download it again."


class PictureError(ValueError):
    """A picture that can't be used; the message is one sentence for a person that names the file, and a cure."""


@dataclass(frozen=True, slots=True)
class DecodedPicture:
    """A picture as it is trained on, and what it took to get there."""

    info: PictureInfo
    picture: Image.Image           # RGB, upright, in sRGB colours, on white where it was transparent
    turned: bool                   # it was stored on its side, or mirrored
    converted: tuple[str, ...]     # of "transparent", "CMYK", "16 bits", "palette", "grey"


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureInfo:
    """What the header of a picture file says."""

    format: str     # one of FORMATS, by the content
    width: int      # pixels as stored, before any EXIF orientation
    height: int
    bytes: int      # size of the file


def looks_like_picture(path: Path) -> bool:
    """Whether a file begins the way files of FORMATS do; an unreadable file does not."""
    try:
        with path.open("rb") as file:
            return _signature(file.read(SIGNATURE_BYTES)) is not None
    except OSError:
        return False


def check_picture(path: Path) -> PictureInfo:
    """Read a picture's header, and nothing more.

    Raises:
        PictureError: of another format, animated, too small, too large, broken or unreadable.
    """
    with _checked(path) as (_, info):
        return info


def open_picture(path: Path) -> Image.Image:
    """Decode a picture to RGB: upright, in sRGB colours, on white where it is transparent.

    Raises:
        PictureError: as :func:`check_picture`, or the pixels are damaged.
    """
    return decode_picture(path).picture


def decode_picture(path: Path) -> DecodedPicture:
    """Decode a picture as :func:`open_picture` does, and say what was found on the way.

    Raises:
        PictureError: as :func:`check_picture`, or the pixels are damaged.
    """
    with _checked(path) as (picture, info):
        try:
            deep = _is_deep(picture)   # known before decoding only
            picture.load()
            upright = _upright(picture)
            return DecodedPicture(info, _plain_rgb(upright), upright is not picture, _conversions(picture, deep))
        except Exception as error:      # a decoder fed with a damaged or hostile file may raise anything
            raise PictureError(f"{path.name} is incomplete or damaged and can't be opened: {error}. "
                               f"{DAMAGED}") from None


def _is_deep(picture: Image.Image) -> bool:
    """Whether its values have more than 8 bits. Pillow has no mode for such colours, but says how they are packed."""
    depth = picture.info.get("bit_depth", 8)   # of HEIC
    return any(";16" in str(tile) for tile in getattr(picture, "tile", [])) or (isinstance(depth, int) and depth > 8)


def _conversions(picture: Image.Image, deep: bool) -> tuple[str, ...]:
    """What of its pixels is changed or lost in RGB of 8 bits."""
    clear = picture.has_transparency_data and any(picture.convert("RGBA").getchannel("A").histogram()[:255])
    kind = {"CMYK": "CMYK", "P": "palette", "L": "grey"}.get(picture.mode, "")
    return tuple(name for name, found in (("transparent", clear), ("16 bits", deep), (kind, kind)) if found)


def save_pixels(picture: Image.Image, path: Path, format: str) -> None:
    """Write a picture that :func:`open_picture` gave, and nothing but its pixels: no place, time, camera or text.

    PNG and WebP keep every pixel; JPEG, at 95 without colour subsampling, changes them too little to see. A picture
    whose file would be larger than :func:`check_picture` allows is halved in width and height until it is not: it was
    encoded with loss before, or had few colours, and has many more pixels than training uses.

    Args:
        picture: RGB.
        path: the file to write.
        format: one of the values of SAVED_AS.
    """
    bare = picture.copy()
    bare.info = {}   # Pillow would write some of it again
    bare.save(path, format, **_ENCODING[format])
    if path.stat().st_size > MAX_BYTES:
        save_pixels(bare.reduce(2), path, format)


def pixel_hash(picture: Image.Image) -> str:
    """Hash of the pixels: equal for two files exactly if they show the same picture."""
    return sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()


def sharpness(picture: Image.Image) -> float:
    """Variance of the Laplacian of the grey values (0–255): large with fine detail, near 0 when blurred."""
    grey = _bytes(picture.convert("L"))[:, :, 0].float()
    middle = grey[1:-1, 1:-1]
    return (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle).var().item()


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB picture to a float tensor ``[3, H, W]``, black −1 and white 1."""
    return _bytes(picture).permute(2, 0, 1).contiguous().float().div(127.5).sub(1)


def _bytes(picture: Image.Image) -> Tensor:
    # bytearray, because torch warns about memory that can't be written to.
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, -1)


@contextmanager
def _checked(path: Path) -> Iterator[tuple[Image.Image, PictureInfo]]:
    """An open picture, not yet decoded, whose header passed."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            _check_size(path.name, size)
            with _opened(path.name, file) as picture:
                yield picture, _check_header(path.name, picture, size)
    except OSError as error:
        raise PictureError(
            f"{path.name} can't be read: {error.strerror or error}. Check that the file exists and that you may read "
            "it."
        ) from None


def _check_size(name: str, size: int) -> None:
    if size == 0:
        raise PictureError(f"{name} is empty, but a picture is needed. {DAMAGED}")
    if size > MAX_BYTES:
        raise PictureError(
            f"{name} has {format_bytes(size)}, but at most {format_bytes(MAX_BYTES)} can be used. Make "
            "it smaller, or save it as JPEG."
        )


def _opened(name: str, file: BinaryIO) -> Image.Image:
    start = file.read(SIGNATURE_BYTES)
    file.seek(0)
    kind = _signature(start)
    if kind is None:
        raise PictureError(f"{name} is {_other_kind(start)}, but a {READABLE} is needed. {CONVERT}")
    if has_too_many_parts(file):
        raise PictureError(f"{name} is made of more than {MAX_PARTS:,} parts, as no picture is. {CONVERT}")
    if kind == "HEIF":
        _register_heif(name)
    try:
        return Image.open(file, formats=[kind] if kind in ("AVIF", "HEIF") else ["PNG", "JPEG", "WEBP"])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, f"more than {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels") from None
    except Exception:                   # as above: a parser of hostile headers
        title = {"WEBP": "WebP", "HEIF": "HEIC"}.get(kind, kind)
        raise PictureError(f"{name} starts like a {title} file, but its header is damaged. {DAMAGED}") from None


def _register_heif(name: str) -> None:
    """Let Pillow read HEIC by libheif; its wheels exist for the usual systems only."""
    try:
        import pi_heif
    except ImportError:
        raise PictureError(f"{name} is a HEIC picture, and pi-heif, the library that reads them, is not installed. "
                           "Install it with: pip install pi-heif. Or save the picture as JPEG.") from None
    pi_heif.register_heif_opener()


def _check_header(name: str, picture: Image.Image, size: int) -> PictureInfo:
    width, height = picture.size
    if min(width, height) < MIN_SIDE:
        raise PictureError(
            f"{name} has {width} × {height} pixels, but each side needs at least {MIN_SIDE}. Use a larger picture."
        )
    if width * height > MAX_MEGAPIXELS * 1e6 or max(width, height) > MAX_SIDE:
        raise _too_large(name, f"{width} × {height} pixels, {width * height / 1e6:.0f} megapixels")
    # Phones write a second view (depth, brightness) behind the JPEG proper, known as MPO: that is no animation. Nor are
    # the pictures of one HEIC file, of which one is marked as the main one.
    frames = 1 if picture.format in ("MPO", "HEIF") else getattr(picture, "n_frames", 1)
    if frames > 1:
        raise PictureError(f"{name} is animated ({frames} frames), but a still picture is needed. {CONVERT}")
    kind = "JPEG" if picture.format == "MPO" else str(picture.format)
    return PictureInfo(format=kind, width=width, height=height, bytes=size)


def _too_large(name: str, given: str) -> PictureError:
    return PictureError(
        f"{name} has {given}, but at most {MAX_MEGAPIXELS} megapixels and {MAX_SIDE} pixels per side can be "
        "used. Make it smaller."
    )


def _signature(start: bytes) -> str | None:
    """Which of FORMATS a file begins like."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start[4:8] == b"ftyp":
        return _container(start)
    return "WEBP" if start.startswith(b"RIFF") and start[8:12] == b"WEBP" else None


def _container(start: bytes) -> str | None:
    """AVIF or HEIF by the brands of a container, the first of them and those that it is compatible with."""
    end = max(16, min(int.from_bytes(start[:4], "big"), 256))
    brands = [start[8:12], *(start[i : i + 4] for i in range(16, end, 4))]
    if not brands[0].startswith((*_AVIF_BRANDS, *_HEIF_BRANDS)):
        return None
    return "AVIF" if any(brand in _AVIF_BRANDS for brand in brands) else "HEIF"


def _other_kind(start: bytes) -> str:
    for offset, magic, kind in OTHER_KINDS:
        if start.startswith(magic, offset):
            return kind
    try:
        # Incremental, because the last bytes may be the first half of a character.
        text = getincrementaldecoder("utf-8")().decode(start).lower()
    except UnicodeDecodeError:
        return "a file of an unknown type"
    if "<html" in text or "<!doctype html" in text:
        return "a web page"
    if "<svg" in text:
        return "an SVG drawing"
    return "a file of an unknown type" if "\0" in text else "text"


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(picture.getexif().get(Base.Orientation, 1))
    except Exception:                   # broken notes about the picture do not make it a broken picture
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _plain_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips instead of scaling: nearly everything would turn white.
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        picture.info.pop("transparency", None)
    profile = picture.info.get("icc_profile")
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return _in_srgb(picture, profile).convert("RGB")


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as a screen shows them; phone pictures are often in a wider space, and print files in CMYK."""
    if not profile or picture.mode not in ("RGB", "CMYK"):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or picture
    except (ImageCms.PyCMSError, OSError):
        return picture                  # a broken or unsuitable profile is ignored, as picture viewers do
