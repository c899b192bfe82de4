"""A sheet of images: a row a setting, a column a prompt."""

from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from lit_dola.run_folder import write_png

_GAP = 12
_FONT_SIZE = 13
_LINE = 16
_FRAMES = {True: (40, 160, 60), False: (220, 35, 40)}


def write_contact_sheet(
    path: Path,
    prompts: list[str],
    rows: dict[str, list[Path]],
    right: dict[str, list[bool]] | None = None,
    size: int = 128,
) -> None:
    """Write a sheet of images as PNG.

    Args:
        path: Where to.
        prompts: Of the columns; written above them.
        rows: By name, an image file for each prompt; the name is written above its row.
        right: By name, whether each image is right: a green frame, or a red one.
        size: Width of an image on the sheet, pixels.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    texts = [wrap(prompt, width=max(10, size // 7)) for prompt in prompts]
    head = _LINE * max(map(len, texts)) + _GAP
    step = size + _LINE + _GAP
    width = _GAP + (size + _GAP) * len(prompts)
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
            with Image.open(file) as image:
                shown = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            if right:
                box = (x - 3, y + _LINE - 3, x + size + 2, y + _LINE + size + 2)
                draw.rectangle(box, outline=_FRAMES[right[name][column]], width=2)
            sheet.paste(shown, (x, y + _LINE))
    write_png(path, sheet, optimize=True)
