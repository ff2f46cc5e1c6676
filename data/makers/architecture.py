"""data/architecture.svg, the one figure of the model. Each part is a group that bears its name; notebooks mark some of
them (`trex2_mini.teaching.figure`).

    python data/makers/architecture.py
"""

from trex2_mini.paths import REPOSITORY, write_text

# name: (x, y, width, height, lines of text). Dashed parts exist in training only.
PARTS = {
    "image": (10, 118, 92, 44, ("image",)),
    "backbone": (128, 118, 104, 44, ("backbone",)),
    "encoder": (250, 118, 152, 44, ("image encoder", "deformable layers")),
    "names": (10, 22, 92, 44, ("names",)),
    "text": (250, 22, 152, 44, ("text prompt encoder", "CLIP tower")),
    "regions": (10, 214, 92, 44, ("boxes, points",)),
    "visual": (250, 214, 152, 44, ("visual prompt encoder", "deformable blocks")),
    "prompts": (446, 118, 108, 44, ("prompts", "T, V, (T + V) / 2")),
    "selection": (592, 118, 110, 44, ("query selection", "eq. 6")),
    "decoder": (732, 118, 116, 44, ("box decoder", "eq. 6 to 8")),
    "answers": (878, 118, 112, 44, ("boxes, scores",)),
    "alignment": (446, 22, 108, 44, ("alignment", "eq. 9")),
    "denoising": (732, 22, 116, 44, ("denoising", "queries")),
    "losses": (878, 22, 112, 44, ("matching,", "losses")),
}
DASHED = ("alignment", "denoising", "losses")
ARROWS = (  # (points of the line); the last one has the head
    ((102, 140), (128, 140)), ((232, 140), (250, 140)),  # image
    ((102, 44), (250, 44)), ((102, 236), (250, 236)),  # prompts as given
    ((326, 162), (326, 214)),  # features to the visual prompt encoder
    ((402, 140), (430, 140), (430, 188), (647, 188), (647, 162)),  # features to the selection
    ((647, 188), (790, 188), (790, 162)),  # and to the decoder
    ((402, 52), (424, 52), (424, 96), (474, 96), (474, 118)),  # T
    ((402, 236), (500, 236), (500, 162)),  # V
    ((554, 140), (592, 140)), ((702, 140), (732, 140)), ((848, 140), (878, 140)),
    ((500, 118), (500, 66)),  # T and V to the alignment
    ((790, 66), (790, 118)), ((934, 118), (934, 66)),
)  # fmt: skip
LABELS = ((410, 134, "f"), (410, 47, "T"), (410, 231, "V"))  # what flows
INK, PAPER = "#22313f", "#ffffff"


def architecture() -> str:
    """The figure, 1000 x 282."""
    shapes = []
    for line in ARROWS:
        path = " ".join(f"{x},{y}" for x, y in line)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{INK}" marker-end="url(#head)"/>')
    for x, y, text in LABELS:
        shapes.append(f'<text x="{x}" y="{y}" font-style="italic">{text}</text>')
    for name, (x, y, width, height, lines) in PARTS.items():
        dash = ' stroke-dasharray="5 3"' if name in DASHED else ""
        shapes.append(f'<g id="{name}" fill="{INK}" color="{PAPER}">')  # of its words, of its ground
        shapes.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="currentColor" stroke="{INK}"{dash}/>'
        )
        for i, words in enumerate(lines):
            row = y + height / 2 + 4 + 14 * (i - (len(lines) - 1) / 2)
            shapes.append(f'<text x="{x + width / 2}" y="{row}" text-anchor="middle">{words}</text>')
        shapes.append("</g>")
    note = "once an image: backbone and encoder. At every prompt: the rest. Dashed: in training only."
    shapes.append(f'<text x="500" y="275" text-anchor="middle" font-size="11">{note}</text>')
    tip = f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/>'
    head = f'<marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">{tip}</marker>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 282" width="1000" font-family="sans-serif" '
        f'font-size="12" fill="{INK}"><rect width="1000" height="282" fill="{PAPER}"/><defs>{head}</defs>'
        + "".join(shapes)
        + "</svg>\n"
    )


if __name__ == "__main__":
    write_text(REPOSITORY / "data" / "architecture.svg", architecture())
