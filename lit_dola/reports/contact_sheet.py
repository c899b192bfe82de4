"""Many images in one: a prompt's images as a grid, or a sheet with one row per variant."""

import math
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from lit_dola.runs.files import write_atomically, write_png
from lit_dola.runs.folder import GRID_FILE, images_of_prompt
from lit_dola.runs.image_file import is_whole, read_image

_GAP = 12
_FONT_SIZE = 13
_LINE = 16
_LABEL = _LINE + 5
"""Height of a row's name, above the frames."""
_FRAMES = {True: (40, 160, 60), False: (220, 35, 40)}


def tile(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tile images of one size, left to right and top to bottom, without gaps, as RGB."""
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * width, rows * height))
    for place, image in enumerate(images):
        grid.paste(image, (place % columns * width, place // columns * height))
    return grid


def write_prompt_grid(prompt_folder: Path, quality: int) -> None:
    """Write all images of a prompt as one, ``grid.jpg``, as square as possible.

    An existing grid of the same images, which its comment lists, is kept. File times would not do:
    a clock may have been set back.

    Args:
        prompt_folder: Folder of the prompt's images.
        quality: Quality of the JPEG, 1 to 100.
    """
    files = images_of_prompt(prompt_folder)
    path = prompt_folder / GRID_FILE
    if not files:
        return
    sizes = " ".join(f"{file.name}:{file.stat().st_size}" for file in files)
    comment = f"lit-dola grid of {sizes}".encode()
    with suppress(OSError, SyntaxError), Image.open(path) as made:
        if made.info.get("comment") == comment and is_whole(path):
            return
    encoded = BytesIO()
    grid = tile([read_image(file) for file in files], columns=math.ceil(math.sqrt(len(files))))
    grid.save(encoded, "JPEG", quality=quality, subsampling=0, comment=comment)
    write_atomically(path, [encoded.getvalue()])


def write_contact_sheet(
    path: Path,
    prompts: list[str],
    rows: dict[str, list[Path]],
    right: dict[str, list[bool]] | None = None,
    size: int = 128,
) -> None:
    """Write a sheet of images as PNG, with one row per variant and one column per prompt.

    Args:
        path: File to write.
        prompts: Prompts of the columns, written above them.
        rows: Image files by the row's name, one per prompt; the name is written above its row.
        right: By the row's name, whether each image is right: a green frame, else a red one.
        size: Width of an image on the sheet, pixels.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    texts = [wrap(prompt, width=max(10, size // 7)) for prompt in prompts]
    head = _LINE * max(map(len, texts)) + _GAP
    step = size + _LABEL + _GAP
    longest = max(font.getlength(name) for name in rows)
    width = _GAP + max((size + _GAP) * len(prompts), math.ceil(longest) + _GAP)
    sheet = Image.new("RGB", (width, head + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(texts):
        x = _GAP + (size + _GAP) * column
        draw.multiline_text((x, _GAP // 2), "\n".join(lines), "black", font)
    for row, (name, files) in enumerate(rows.items()):
        y = head + step * row
        draw.text((_GAP, y), name, "gray", font)
        for column, file in enumerate(files):
            x = _GAP + (size + _GAP) * column
            shown = read_image(file).resize((size, size), Image.Resampling.BICUBIC)
            if right:
                box = (x - 3, y + _LABEL - 3, x + size + 2, y + _LABEL + size + 2)
                draw.rectangle(box, outline=_FRAMES[right[name][column]], width=2)
            sheet.paste(shown, (x, y + _LABEL))
    write_png(path, sheet, optimize=True)
