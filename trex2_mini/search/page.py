"""The pictures that a search found as a contact sheet: an HTML page that needs no other file, or a picture."""

import base64
import html
import io
from collections.abc import Sequence

import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import nms

from trex2_mini.images import load_image
from trex2_mini.plots import fonts_for
from trex2_mini.search.rank import Hit

CROPS, HEIGHT, GAP = 3, 150, 12  # best crops of a picture; their height, and what lies between figures, in pixels
STYLE = f"""<style>
.trex-hits {{display: flex; flex-wrap: wrap; gap: {GAP}px; font: 14px sans-serif}}
.trex-hits figure {{margin: 0; padding: 6px; border: 1px solid #8886}}
.trex-hits img {{height: {HEIGHT}px; margin-right: 4px}}
</style>"""


def contact_sheet(hits: Sequence[Hit], title: str = "") -> str:
    """HTML: each picture of `hits`, small, with its boxes, beside the best of what was found on it, cut out with a
    margin; below them its file name (a link to the file), the score and the names.
    """
    figures = "\n".join(_figure(rank, hit) for rank, hit in enumerate(hits, 1)) or "nothing was found"
    title = html.escape(title)
    head = f'<!doctype html><meta charset="utf-8"><title>{title}</title>{STYLE}<h3>{title}</h3>'
    return f'{head}<div class="trex-hits">{figures}</div>\n'


def as_picture(hits: Sequence[Hit], width: int = 1200) -> Image.Image:
    """The contact sheet as a picture of `width` pixels: the figures in rows, each over its caption."""
    captions = [_caption(rank, hit) for rank, hit in enumerate(hits, 1)]
    family = fonts_for(frozenset("".join(captions)))[-1]  # one that has the rarest characters has plain ones too
    font = ImageFont.truetype(font_manager.findfont(family), 14)
    figures: list[Image.Image] = []
    for hit, caption in zip(hits, captions):
        parts = [_small(part, HEIGHT, width // 2) for part in _parts(hit)]
        while sum(part.width + 4 for part in parts) > width:
            parts.pop()
        wide = min(max(sum(part.width + 4 for part in parts), int(font.getlength(caption)) + 8), width)
        figures.append(Image.new("RGB", (wide, HEIGHT + 28), "white"))
        x = 0
        for part in parts:
            figures[-1].paste(part, (x, 0))
            x += part.width + 4
        ImageDraw.Draw(figures[-1]).text((0, HEIGHT + 4), caption, "black", font)
    places, x, y = [], GAP, GAP
    for figure in figures:
        if x > GAP and x + figure.width + GAP > width + 2 * GAP:
            x, y = GAP, y + HEIGHT + 28 + GAP
        places.append((x, y))
        x += figure.width + GAP
    sheet = Image.new("RGB", (width + 2 * GAP, y + HEIGHT + 28 + GAP), "white")
    for figure, place in zip(figures, places):
        sheet.paste(figure, place)
    return sheet


def _caption(rank: int, hit: Hit) -> str:
    name = hit.path.name.encode(errors="replace").decode()  # a name may hold bytes that are no text
    said = ", ".join(f"{label} {count}" for label, count in hit.detections.counts().items() if count)
    return f"{rank}. {name} {hit.score:.2f} ({said})"


def _parts(hit: Hit) -> list[Image.Image]:
    """The picture with its boxes, and the best of what was found on it, cut out with a margin."""
    picture = Image.fromarray(load_image(hit.path))
    found = hit.detections  # the best come first
    crops = []
    apart = nms(torch.from_numpy(found.boxes), torch.from_numpy(found.scores), 0.7)[:CROPS]  # of whatever names
    for x1, y1, x2, y2 in found.boxes[apart.numpy()].tolist():
        margin = 0.1 * max(x2 - x1, y2 - y1)
        low, high = (max(0, x1 - margin), max(0, y1 - margin)), (x2 + margin, y2 + margin)
        crops.append(
            picture.crop((int(low[0]), int(low[1]), *(min(int(a) + 1, b) for a, b in zip(high, picture.size))))
        )
    draw = ImageDraw.Draw(picture)
    for box in found.boxes.tolist():
        draw.rectangle(box, outline=(255, 40, 160), width=max(2, picture.height // HEIGHT))
    return [picture, *crops]


def _figure(rank: int, hit: Hit) -> str:
    number, _, rest = html.escape(_caption(rank, hit)).partition(" ")
    link = html.escape(hit.path.resolve().as_uri())
    images = "".join(f'<img src="{_thumbnail(part)}" alt="">' for part in _parts(hit))
    return f'<figure>{images}<figcaption>{number} <a href="{link}">{rest}</a></figcaption></figure>'


def _small(picture: Image.Image, height: int, width: int) -> Image.Image:
    """At most so high and wide; enlarged to that height where it is smaller."""
    scale = min(height / picture.height, width / picture.width)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def _thumbnail(picture: Image.Image) -> str:
    """A JPEG of at most twice HEIGHT (for sharp screens), inlined."""
    small, buffer = picture.copy(), io.BytesIO()
    small.thumbnail((6 * HEIGHT, 2 * HEIGHT))
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
