"""What there is to work on: image files and a CSV file, made anew for each run and the same each time."""

from __future__ import annotations

import csv
import random
from datetime import date, timedelta
from pathlib import Path

from PIL import Image, ImageDraw

IMAGES = 24
SIZE = (1280, 960)
ROWS = 160
BAD_ROWS = 2
REGIONS = ("north", "east", "south", "west")
FIRST_DAY = date(2026, 1, 1)


def make_materials(folder: Path) -> None:
    """Fill `folder`; make the folders for the results as well."""
    for name in ("images", "thumbnails", "reports"):
        (folder / name).mkdir()
    dice = random.Random(7)
    for number in range(IMAGES):
        make_image(folder / "images" / f"photo-{number:02}.{'png' if number % 4 == 0 else 'jpg'}", dice)
    make_csv(folder / "sales.csv", dice)


def make_image(path: Path, dice: random.Random) -> None:
    """Paint something that compresses like a photograph, more or less."""
    bands = [Image.linear_gradient("L").rotate(dice.choice((0, 90, 180, 270))).resize(SIZE) for _ in range(3)]
    picture = Image.merge("RGB", bands)
    brush = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y, radius = dice.randrange(SIZE[0]), dice.randrange(SIZE[1]), dice.randrange(10, 120)
        colour = (dice.randrange(256), dice.randrange(256), dice.randrange(256))
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    if path.suffix == ".png":
        picture.save(path, compress_level=1)
    else:
        picture.save(path)


def make_csv(path: Path, dice: random.Random) -> None:
    """Write the sales; the last rows are the kind that somebody typed by hand."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("order", "region", "sold_on", "cents"))
        for number in range(ROWS):
            day = FIRST_DAY + timedelta(days=dice.randrange(365))
            writer.writerow((f"A{number:05}", dice.choice(REGIONS), day, dice.randrange(100, 100_000)))
        for number in range(ROWS, ROWS + BAD_ROWS):
            writer.writerow((f"A{number:05}", dice.choice(REGIONS), "yesterday", "about 30"))
