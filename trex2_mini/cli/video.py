"""`trex2 video`: a clip by prompts on one of its frames, by words or by a bank."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from trex2_mini.cli.options import PATH, command, write_result
from trex2_mini.cli.prompts import Asked, prompts

WRITTEN = (".mp4", ".mov", ".mkv", ".avi")


@command()
@click.argument("clip", type=PATH)
@prompts
@click.option(
    "--frame", type=click.IntRange(0), default=0, metavar="N", help="The frame on which --box and --point lie."
)
@click.option("--every", type=click.IntRange(1), default=1, metavar="N", help="Look at every Nth frame.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Look at N frames at most.")
@click.option("--out", type=PATH, metavar="FILE.mp4", help="Draw what is found.")
@write_result("COCO-VID. Interrupted, the same command goes on.")
def video(
    clip: Path, asked: Asked, frame: int, every: int, limit: int | None, out: Path | None, json_path: Path | None
) -> None:
    """Find objects on the frames of a video (extra `video`). Boxes are x1 y1 x2 y2, in pixels of the frame.

    Boxes and points on one frame are the prompt for all; each frame is detected alone, nothing is tracked. Frames count
    from 0.

    Examples:
    trex2 video clip.mp4 --box 192 30 240 73 --name coin --out found.mp4
    trex2 video clip.mp4 --text "cat, dog" --every 5 --json found.json
    """
    if not (out or json_path):
        raise click.UsageError("Give --out, --json or both.", click.get_current_context())
    if out and out.suffix.lower() not in WRITTEN:
        raise click.UsageError(f"--out {out}: expected one of {', '.join(WRITTEN)}.", click.get_current_context())
    from trex2_mini.annotations import as_coco, detect_pictures, names_of
    from trex2_mini.paths import write_text

    rate, number = _describe(clip)
    number = min(-(-number // every), limit or number)
    if asked.on_picture:
        prompted = next((pixels for index, pixels in frames(clip) if index == frame), None)
        if prompted is None:
            raise ValueError(f"{clip} has no frame {frame}; frames count from 0")
        asked = asked.everywhere(prompted)

    def named() -> Iterator[tuple[str, object]]:
        return ((f"{clip.stem}/{index:06d}.jpg", pixels) for index, pixels in frames(clip, every, limit))

    kept = json_path or out
    partial = kept.with_name(f"{kept.name}.part")
    key = asked.key | {"clip": str(clip.resolve()), "every": every, "limit": limit, "frame": frame}
    found, counts = detect_pictures(asked.read, asked.detect, named(), number, partial, key)
    if json_path:
        coco = as_coco(found, names_of(found))
        height, width, _ = next(iter(found.values()))
        coco["videos"] = [{"id": 1, "name": clip.stem, "height": height, "width": width, "fps": float(rate / every)}]
        for image in coco["images"]:
            image |= {"video_id": 1, "frame_index": int(Path(image["file_name"]).stem)}
        write_text(json_path, json.dumps(coco, ensure_ascii=False))
    if out:
        from trex2_mini.plots import drawn

        write_video(out, (drawn(pixels, found[name][2]) for name, pixels in named()), rate / every, len(found))
    partial.unlink()
    click.echo(f"{counts['pictures']} frames, {counts['detections']} detections, {counts['resumed']} resumed")
    for path in filter(None, (json_path, out)):
        click.echo(f"written: {path}")


def _av():
    try:
        import av
    except ModuleNotFoundError:
        raise ValueError('video needs one package more: pip install "trex2-mini[video]"') from None
    return av


def _describe(clip: Path):
    """(frames a second, number of frames as the file says or guessed from its duration). Raises ValueError."""
    if not clip.is_file():
        raise FileNotFoundError(f"the video {clip} does not exist")
    with _opened(clip) as container:
        if not container.streams.video:
            raise ValueError(f"{clip} holds no video")
        stream = container.streams.video[0]
        rate = stream.average_rate or 25
        return rate, stream.frames or max(1, round((container.duration or 0) / 1e6 * rate))


@contextmanager
def _opened(clip: Path) -> Iterator[Any]:
    """A video; what cannot be read in it is a ValueError that names it."""
    av = _av()
    try:
        with av.open(str(clip)) as container:
            yield container
    except av.FFmpegError as error:
        raise ValueError(f"{clip} is not a readable video (cut short, or of an unknown format): {error}") from None


def frames(clip: Path, every: int = 1, limit: int | None = None) -> Iterator[tuple[int, object]]:
    """(index from 0, uint8 [H, W, 3] RGB, upright) of every Nth frame."""
    import numpy as np

    with _opened(clip) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % every == 0:
                if limit is not None and index // every >= limit:
                    return
                yield index, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def write_video(path: Path, pictures: Iterator, rate, number: int) -> None:
    """uint8 [H, W, 3] RGB as an H.264 video, which has even sides: an odd last row or column is cut off."""
    from tqdm import tqdm

    av = _av()
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = None
        for pixels in tqdm(pictures, "drawing", number, unit="frame", disable=None):
            height, width = (side // 2 * 2 for side in pixels.shape[:2])
            if stream is None:
                stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=rate)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels[:height, :width].copy(), format="rgb24")))
        container.mux(stream.encode())
