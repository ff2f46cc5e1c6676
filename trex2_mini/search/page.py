"""The pictures that a search found, as one HTML page that needs no other file: a contact sheet."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from trex2_mini.images import load_image
from trex2_mini.search.rank import Hit

CROPS, HEIGHT = 3, 150  # best crops of a picture; their height in pixels
STYLE = f"""<style>
.trex-hits {{display: flex; flex-wrap: wrap; gap: 12px; font: 14px sans-serif}}
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


def _figure(rank: int, hit: Hit) -> str:
    picture = Image.fromarray(load_image(hit.path))
    found, best = hit.detections, hit.detections.scores.argsort()[::-1]
    crops = []
    for x1, y1, x2, y2 in found.boxes[best[:CROPS]].tolist():
        margin = 0.1 * max(x2 - x1, y2 - y1)
        low, high = (max(0, x1 - margin), max(0, y1 - margin)), (x2 + margin, y2 + margin)
        crops.append(
            picture.crop((int(low[0]), int(low[1]), *(min(int(a) + 1, b) for a, b in zip(high, picture.size))))
        )
    draw = ImageDraw.Draw(picture)
    for box in found.boxes.tolist():
        draw.rectangle(box, outline=(255, 40, 160), width=max(2, picture.height // HEIGHT))
    name = html.escape(hit.path.name.encode(errors="replace").decode())  # a name may hold bytes that are no text
    link = html.escape(hit.path.resolve().as_uri())
    counts = {label: int((found.labels == place).sum()) for place, label in enumerate(found.names)}
    said = html.escape(", ".join(f"{label} {count}" for label, count in counts.items() if count))
    images = "".join(f'<img src="{_thumbnail(part)}" alt="">' for part in [picture, *crops])
    caption = f'{rank}. <a href="{link}">{name}</a> {hit.score:.2f} ({said})'
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def _thumbnail(picture: Image.Image) -> str:
    """A JPEG of at most twice HEIGHT (for sharp screens), inlined."""
    small, buffer = picture.copy(), io.BytesIO()
    small.thumbnail((6 * HEIGHT, 2 * HEIGHT))
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
