"""Image files to RGB pixels; what cannot be read is named. No torch."""

from __future__ import annotations

import io
from pathlib import Path

from drbench.errors import DrbenchError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # ImageNet has files of other formats than their names say


def decode(content: bytes | Path, where: object, rgb: bool = True):
    """A `PIL.Image`, wholly decoded. With `rgb`, grey, CMYK and palette images become RGB, as the field does it.

    Parameters
    ----------
    where : object
        Names the image in the error: a truncated or damaged file is never skipped or replaced.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
            image.load()
            if image.mode.startswith(("I", "F")):  # PIL would cut all values at 255
                raise ValueError(f"expected pixels of 8 bits, got mode {image.mode}")
            return image.convert("RGB") if rgb and image.mode != "RGB" else image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DrbenchError(f"{where}: not a readable image: {error}; get it again") from error
