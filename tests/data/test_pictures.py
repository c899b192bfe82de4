"""Images of every kind become RGB, and broken ones an error of one line."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lit_dola.data.pictures import LoadedPicture, read_picture
from lit_dola.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def picture(tmp_path):
    """Save an image and read it again."""

    def of(image, name="a.png", background=(127, 127, 127), **how):
        image.save(tmp_path / name, **how)
        return read_picture(tmp_path / name, background)

    return of


def halves(left, right, mode="RGB"):
    image = Image.new(mode, (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


def ends(image):
    """The colour of the left and of the right end."""
    assert image.mode == "RGB"
    return image.getpixel((0, 0)), image.getpixel((image.width - 1, 0))


def test_plain(picture):
    assert ends(picture(halves(RED, BLUE))) == (RED, BLUE)


def test_grey_and_one_bit(picture):
    assert ends(picture(halves(10, 200, "L"))) == ((10,) * 3, (200,) * 3)
    assert ends(picture(halves(0, 1, "1"))) == ((0,) * 3, (255,) * 3)


def test_transparent_pixels_show_the_background(picture):
    half = halves((*RED, 255), (*BLUE, 0), "RGBA")
    assert ends(picture(half, background=(1, 2, 3))) == (RED, (1, 2, 3))
    grey = halves((10, 255), (200, 0), "LA")
    assert ends(picture(grey, background=(1, 2, 3))) == ((10,) * 3, (1, 2, 3))


def test_palettes(picture):
    image = halves(RED, BLUE).quantize(4)
    assert ends(picture(image)) == (RED, BLUE)
    blue = image.getpixel((7, 0))
    assert ends(picture(image, background=(1, 2, 3), transparency=blue)) == (RED, (1, 2, 3))


def test_cmyk(picture):
    left, right = ends(picture(halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "a.tiff"))
    assert left == RED
    assert right == BLUE


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_are_scaled_and_not_clipped(name, picture):
    numbers = np.array([[0, 65535], [32768, 257]], dtype=np.uint16)
    image = picture(Image.fromarray(numbers), name)
    assert [image.getpixel(at)[0] for at in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 255, 128, 1]


def test_fractions(picture):
    numbers = np.array([[0.0, 1.0], [0.5, 0.25]], dtype=np.float32)
    image = picture(Image.fromarray(numbers), "a.tiff")
    assert [image.getpixel(at)[0] for at in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 255, 128, 64]


def test_the_camera_was_held_upright(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    image = picture(halves(RED, BLUE), exif=exif)
    assert image.size == (4, 8)
    assert (image.getpixel((0, 0)), image.getpixel((0, 7))) == (RED, BLUE)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation(name, picture):
    lossless = {"lossless": True} if name == "a.webp" else {}
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    image = picture(frames[0], name, save_all=True, append_images=frames[1:], **lossless)
    assert ends(image) == (RED, RED)


def test_an_extreme_shape(picture):
    assert picture(Image.new("RGB", (100_000, 1), RED)).size == (100_000, 1)


def jpeg():
    content = BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(content, "JPEG")
    return content.getvalue()


def png():
    content = BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "PNG")
    return content.getvalue()


BROKEN = {
    "empty": b"",
    "html": b"<!doctype html><html><body>404 Not Found</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "jpeg cut": jpeg()[:700],
    "png cut": png()[:700],
    "png of noise": png()[:60] + bytes(range(256)) * 8,
    "jpeg header": jpeg()[:20],
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_line_that_names_it(content, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "; expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path):
    for path, found in (tmp_path, "a folder"), (tmp_path / "none.png", "nothing"):
        with pytest.raises(UserError, match=f"found {found}; expected an image file"):
            read_picture(path)


def test_a_decompression_bomb(picture, monkeypatch):
    for limit in 30, 10:  # Pillow warns above its limit and refuses above twice as much
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(
            UserError, match=rf"more than {limit} pixels.*; expected a smaller image"
        ):
            picture(halves(RED, BLUE))


ODD_NUMBERS = {
    "NaN": ([[0.5, float("nan")]], np.float32, "1 of 2 pixels are not finite; expected numbers"),
    "infinity": ([[0.5, float("inf")]], np.float32, "1 of 2 pixels are not finite"),
    "less than black": ([[-0.5, 1.0]], np.float32, "pixels from -0.5 to 1; expected 0 to 1"),
    "metres": ([[12.5, 99_000.0]], np.float32, "pixels from 0 to 99000; expected 0 to 1"),
    "32 bits": ([[0, 2**31 - 1]], np.int32, "pixels from 0 to 2.14748e+09; expected 0 to 1"),
    "a sign": ([[-5, 100]], np.int32, "pixels from -5 to 100; expected 0 to 1"),
}


@pytest.mark.parametrize("case", ODD_NUMBERS)
def test_numbers_that_are_no_shades_are_refused(case, picture):
    numbers, kind, message = ODD_NUMBERS[case]
    with pytest.raises(UserError, match="a.tiff: " + message.replace("+", r"\+")):
        picture(Image.fromarray(np.array(numbers, dtype=kind)), "a.tiff")


def test_a_dark_png_of_sixteen_bits_stays_dark(picture):
    image = picture(Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)))
    assert image.getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00no TIFF at all", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"]
)
def test_broken_metadata_are_ignored(name, exif, picture):
    left, right = ends(picture(halves(RED, BLUE), name, exif=exif))
    assert left[0] > 200
    assert right[2] > 200


def cut():
    return Image.open(BytesIO(jpeg()[:700]))


def closed():
    image = Image.open(BytesIO(jpeg()))
    image.load()
    image.close()
    return image


@pytest.mark.parametrize("broken", [cut, closed, lambda: Image.new("RGB", (0, 5))])
def test_an_image_in_memory_that_is_broken_is_one_line(broken):
    with pytest.raises(UserError, match=r"^picture: "):
        read_picture(LoadedPicture(broken()))
