"""The command line: `python -m trex2_mini {data,train,evaluate,detect,reproduce,...} --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trex2_mini", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    data = commands.add_parser("data", help="make the embedded sets, fetch parts of COCO and LVIS, or check a set")
    data.add_argument(
        "name",
        help="emoji (what the demo needs), emoji-family (all embedded sets), one of them by name; coco, lvis (lvis-val), lvis-train, lvis-minival, "
        "photos (fetched); check",
    )
    data.add_argument("folder", nargs="?", help="check: a set's name or folder")
    data.add_argument("--out", type=Path, help="check: a picture of the statistics")
    data.add_argument("--images", type=int, default=500, help="coco, lvis: how many pictures (default 500)")
    data.add_argument("--full", action="store_true", help="coco, lvis: all of them")
    data.add_argument("--split", default="val2017", choices=["val2017", "train2017"], help="coco (default val2017)")
    data.add_argument("--ids", type=Path, help="coco: a file with the ids of the pictures, one a line")
    data.add_argument("--seed", type=int, default=0, help="of the choice of pictures")
    data.set_defaults(command_function=_data)

    train = commands.add_parser("train", help="train a model on emoji scenes or on sets in COCO format")
    train.add_argument("--preset", default="nano", help="nano, swin_t or swin_l (default nano)")
    train.add_argument(
        "--data", nargs="+", default=["emoji"], metavar="NAME[=SHARE]",
        help="emoji (fresh scenes, the default), coco-train2017, or a folder in COCO format; several are mixed by their shares",
    )  # fmt: skip
    train.add_argument("--config", type=Path, help="a config.json instead of a preset")
    train.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe values to change, such as steps=2000 lr=3e-4"
    )
    train.add_argument(
        "--run", "--out", type=Path, default=Path("runs/nano"),
        help="folder of the run (default runs/nano); under torchrun say --out, it takes --run for an option of its own",
    )  # fmt: skip
    train.add_argument("--resume", action="store_true", help="go on from the run's last saved state")
    train.add_argument(
        "--start-from", metavar="CHECKPOINT", help="begin with the weights of a checkpoint, a shipped name or a folder"
    )
    train.add_argument("--save-every", type=int, default=250, metavar="STEPS")
    train.add_argument(
        "--random-weights", action="store_true", help="do not start from ImageNet and CLIP weights (swin_t, swin_l)"
    )
    train.add_argument(
        "--device", default="cpu", help="cpu (default) or cuda; under torchrun each process has a GPU of its own"
    )
    train.add_argument(
        "--workers", type=int, default=1, help="processes that make pictures, beside each that trains (default 1)"
    )
    train.set_defaults(command_function=_train)

    distil = commands.add_parser(
        "distil", help="teach the text tower of a checkpoint more words, with a sentence encoder"
    )
    distil.add_argument(
        "--checkpoint", default="nano-emoji", help="a folder, or a shipped name; trained on emoji scenes"
    )
    distil.add_argument("--out", required=True, help="folder to write")
    distil.add_argument("--steps", type=int, default=1000)
    distil.set_defaults(command_function=_distil)

    evaluate = commands.add_parser("evaluate", help="measure a checkpoint by one of the paper's protocols")
    evaluate.add_argument(
        "--data", default="emoji-val", help="emoji-val, or a folder with annotations.json and images/"
    )
    evaluate.add_argument("--reference", default="emoji-reference", help="where Visual-G draws its examples")
    evaluate.add_argument(
        "--protocol", required=True, metavar="P",
        choices=["text", "visual-i", "visual-i-others", "visual-i-negatives", "visual-g", "mixed", "region", "region-visual", "counting", "video"],
        help="text, visual-i, visual-i-others, visual-i-negatives (with look-alikes), visual-g, mixed; "
        "naming boxes: region, region-visual; "
        "counting (--data emoji-count); video (--data emoji-clips)",
    )  # fmt: skip
    evaluate.add_argument("--categories", default="all", choices=["all", "trained", "novel"])
    evaluate.add_argument("--checkpoint", default="nano-emoji", help="a shipped name or a folder")
    evaluate.add_argument(
        "--examples", type=int, metavar="N",
        help="images a category for Visual-G (default 16); boxes shown for counting, negatives given for visual-i-negatives (1 to 3, default 3); "
        "frames prompted for video (1)",
    )  # fmt: skip
    evaluate.add_argument(
        "--tiles",
        type=float,
        default=0.0,
        metavar="S",
        help="counting: in tiles, S sides of an exemplar wide (8 is good); 0: none",
    )
    evaluate.add_argument("--points", action="store_true", help="Visual-I with centre points instead of boxes")
    evaluate.add_argument("--synonyms", action="store_true", help="text asks by the first synonym instead of the name")
    evaluate.add_argument(
        "--baselines",
        nargs="*",
        default=[],
        choices=["template", "features"],
        help="of the visual-i protocols, beside the echo: evaluation/baselines.py",
    )
    evaluate.add_argument("--split", default="test", help="counting: val or test (default test)")
    evaluate.add_argument(
        "--threshold", type=float, default=0.3, help="counting, visual-i-negatives: from which score on (default 0.3)"
    )
    evaluate.add_argument("--limit", type=int, help="only the first so many images; video: clips")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument(
        "--draws", type=int, default=1, metavar="K", help="mean and deviation over the seeds SEED, ..., SEED + K - 1"
    )
    evaluate.add_argument(
        "--bootstrap", type=int, default=0, metavar="R", help="a 95 %% interval of AP by R resamples of the images"
    )
    evaluate.add_argument("--json", type=Path, help="write the result here")
    evaluate.set_defaults(command_function=_evaluate)

    score = commands.add_parser("scorecard", help="all protocols of a shipped checkpoint, its goals beside its numbers")
    score.add_argument("--checkpoint", default="nano-emoji", help="nano-emoji or nano-photo (default nano-emoji)")
    score.add_argument("--source", help="a folder with other weights, measured against the same goals")
    score.add_argument("--draws", type=int, default=1, metavar="K", help="of examples and prompts; their mean is shown")
    score.add_argument("--limit", type=int, help="only the first so many images of each set")
    score.add_argument("--json", type=Path, help="write the results here; an interrupted run goes on")
    score.set_defaults(command_function=_scorecard)

    detect = commands.add_parser("detect", help="detect on a picture, or on all of a folder")
    detect.add_argument("image", type=Path, help="a picture or a folder of them")
    detect.add_argument("--text", help="names, separated by commas")
    detect.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        metavar=("X1", "Y1", "X2", "Y2"),
        help="an example on the image, in pixels; may be repeated",
    )
    detect.add_argument(
        "--point",
        nargs=2,
        type=float,
        action="append",
        metavar=("X", "Y"),
        help="an example on the image, in pixels; may be repeated",
    )
    detect.add_argument("--bank", type=Path, help="a prompt bank that PromptBank.save wrote")
    detect.add_argument("--json", type=Path, help="of a folder: the COCO file to write; an interrupted run goes on")
    detect.add_argument("--name", default="object", help="the name of what the boxes and points show")
    detect.add_argument("--checkpoint", default="nano-emoji", help="a shipped name or a folder")
    detect.add_argument("--threshold", type=float, default=0.3)
    detect.add_argument("--out", type=Path, help="write a picture here")
    detect.set_defaults(command_function=_detect)

    warm = commands.add_parser("warm-start", help="a checkpoint from transformers' Deformable DETR or Grounding DINO")
    warm.add_argument(
        "--from", dest="source", required=True, help="a folder of transformers', or owner/name on the Hub"
    )
    warm.add_argument("--preset", default="swin_t", help="the model to fill (default swin_t)")
    warm.add_argument("--config", type=Path, help="a config.json instead of a preset")
    warm.add_argument(
        "--random-weights", action="store_true", help="the rest does not start from ImageNet and CLIP weights"
    )
    warm.add_argument("--out", type=Path, required=True, help="folder to write")
    warm.set_defaults(command_function=_warm_start)

    export = commands.add_parser("export", help="write a checkpoint as ONNX programs: encoder, prompt, decoder")
    export.add_argument("--checkpoint", default="nano-emoji", help="a shipped name or a folder")
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument(
        "--size", nargs=2, type=int, default=(192, 256), metavar=("HEIGHT", "WIDTH"), help="of the images, in pixels"
    )
    export.add_argument("--text", default="", help="names whose embeddings are to go along, separated by commas")
    export.set_defaults(command_function=_export)

    engine = commands.add_parser(
        "engine",
        help="pseudo-labels: text (captioned pictures), visual (boxes without names); effect (AP with and without them)",
    )
    engine.add_argument("name", choices=["text", "visual", "effect"])
    engine.add_argument(
        "--data", metavar="NAME|FOLDER",
        help="text: emoji-captions (default), a folder with captions.json and images/, pictures with .txt files, or a folder of pictures for each "
        "category; visual: emoji-sa (default) or a set with boxes",
    )  # fmt: skip
    engine.add_argument("--out", type=Path, help="folder to write; a rerun goes on (default runs/engine-NAME)")
    engine.add_argument("--checkpoint", default="nano-emoji", help="a shipped name or a folder")
    engine.add_argument("--score", type=float, help="least score of a detection (default: text 0.2, visual 0.3)")
    engine.add_argument(
        "--similarity", type=float, default=0.8, help="text: least cosine of region and phrase (default 0.8)"
    )
    engine.add_argument(
        "--more-than", type=int, default=100, help="text: a phrase in more captions is a negative (default 100)"
    )
    engine.add_argument(
        "--parser", default="auto", help="text: auto, rules, or a pipeline of spaCy's such as en_core_web_sm"
    )
    engine.add_argument(
        "--names", type=Path, help="visual: a file with one name a line (default: the 390 trained emoji names)"
    )
    engine.add_argument("--probability", type=float, default=0.3, help="visual: least of a box's name (default 0.3)")
    engine.add_argument(
        "--min-instances", type=int, default=2, help="visual: boxes of one name that keep a picture (default 2)"
    )
    engine.add_argument("--limit", type=int, help="only the first so many pictures")
    engine.add_argument("--shard", type=int, default=50, help="pictures a shard (default 50)")
    engine.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    engine.add_argument("--truth", type=Path, help="a COCO file of what is really there: precision and recall")
    engine.add_argument("--steps", type=int, default=60, help="effect: of each fine-tuning (default 60)")
    engine.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], help="effect: of the fine-tunings (default 0 1)"
    )
    engine.add_argument("--images", type=int, default=100, help="effect: of emoji-val, to measure on (default 100)")
    engine.add_argument("--json", type=Path, help="write the result here")
    engine.set_defaults(command_function=_engine)

    reproduce = commands.add_parser(
        "reproduce", help="run the reproduction notebooks over a grid of parameters; one table of what came out"
    )
    reproduce.add_argument(
        "--scale", default="smoke", help="smoke, laptop or full (notebooks/params); or a YAML file of runs of your own"
    )
    reproduce.add_argument("--out", type=Path, help="folder of the runs and tables (default runs/reproduce/SCALE)")
    reproduce.add_argument("--only", metavar="NN", help="only notebooks whose name begins so, such as 13")
    reproduce.add_argument("--workers", type=int, default=1, help="runs at a time (default 1)")
    reproduce.add_argument("--submitit", choices=["local", "slurm"], help="every run as a job of submitit's")
    reproduce.set_defaults(command_function=_reproduce)

    ablate = commands.add_parser("ablate", help="train variants of the recipe with equal budgets in a small world")
    ablate.add_argument("--variants", nargs="+", metavar="V", help="of ablations.VARIANTS (default all)")
    ablate.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    ablate.add_argument("--steps", type=int, default=400, help="of each run (default 400: about 4 minutes)")
    ablate.add_argument("--out", type=Path, default=Path("runs/ablations/results"), help="folder of the results")
    ablate.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of the scenes and runs")
    ablate.set_defaults(command_function=_ablate)

    info = commands.add_parser(
        "info", help="parameters by part of a preset; with --size, time and memory of a forward pass"
    )
    info.add_argument("--preset", default="nano", help="nano, swin_t or swin_l (default nano); weights are random")
    info.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="also run one image of this size, in pixels"
    )
    info.set_defaults(command_function=_info)

    benchmark = commands.add_parser("benchmark", help="speed, as ratios against named references in the same run")
    benchmark.add_argument(
        "name", choices=["attention", "model", "training", "evaluation", "interaction", "onnx", "soak"]
    )
    benchmark.add_argument("--quick", action="store_true", help="small sizes and few rounds: a look, not a measurement")
    benchmark.add_argument("--repeats", type=int, metavar="N", help="rounds of the median (default 5)")
    benchmark.add_argument(
        "--preset",
        action="append",
        metavar="NAME",
        help="model only: measure this preset alone (default all; may be repeated)",
    )
    benchmark.add_argument("--images", type=int, metavar="N", help="evaluation only: AP of N images alone, once")
    benchmark.add_argument("--json", type=Path, help="write the result here")
    benchmark.set_defaults(command_function=_benchmark)

    options = parser.parse_args(arguments)
    try:
        options.command_function(options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _data(options: argparse.Namespace) -> None:
    from trex2_mini.datasets import download
    from trex2_mini.datasets.emoji.family import make_family
    from trex2_mini.datasets.emoji.sets import EMOJI_SETS
    from trex2_mini.datasets.formats import LVIS_SETS
    from trex2_mini.datasets.registry import open_dataset

    if (options.name == "check") != (options.folder is not None):
        raise ValueError("expected: data check FOLDER, or data NAME without a folder")
    if options.images < 1:
        raise ValueError(f"--images must be at least 1, got {options.images}")
    if options.name == "check":
        return _check(options.folder, options.out)
    if options.name == "lvis":
        options.name = "lvis-val"
    images = None if options.full else options.images
    if options.name == "coco":
        ids = [int(line) for line in options.ids.read_text().split()] if options.ids else None
        names = [download.coco(options.split, images, options.seed, ids)]
    elif options.name in LVIS_SETS:
        names = [download.lvis(options.name, images, options.seed)]
    elif options.name == "photos":
        names = download.photos()
    else:
        groups = {"emoji": ["emoji-val", "emoji-reference"], "emoji-family": list(EMOJI_SETS)}
        names = groups.get(options.name, [options.name])
    if options.name == "emoji-family":  # several sets at a time
        make_family()
    for name in names:
        dataset = open_dataset(name)
        boxes = len(dataset.coco["annotations"])
        print(f"{name}: {len(dataset)} images, {len(dataset.names)} categories, {boxes} boxes in {dataset.images}")


def _check(folder: str, out: Path | None) -> None:
    from trex2_mini.datasets.registry import open_dataset
    from trex2_mini.datasets.statistics import check_pictures, statistics

    dataset = open_dataset(folder)
    found = statistics(dataset)
    print(f"{dataset.path}: {found['images']} images ({found['empty_images']} without objects), {found['boxes']} boxes")
    print(f"{found['categories']} categories, by number of boxes:")
    rows = list(found["per_category"].items())
    for name, counts in rows if len(rows) <= 30 else [*rows[:15], *rows[-15:]]:
        print(f"  {name:32s} {counts['boxes']:7,d} boxes on {counts['images']:6,d} images")
    if out:
        from trex2_mini.plots import save_statistics

        save_statistics(found, out)
        print(f"picture: {out}")
    problems = dataset.problems + check_pictures(dataset)
    for problem in problems[:50]:
        print(f"problem: {problem}")
    print(f"{len(problems)} problems" + (", the first 50 are shown" if len(problems) > 50 else ""))


def _train(options: argparse.Namespace) -> None:
    from trex2_mini.config import Config, preset
    from trex2_mini.processes import one_of_many
    from trex2_mini.training.batches import open_batches
    from trex2_mini.training.iteration import batch_parts
    from trex2_mini.training.trainer import Trainer

    config = Config.load(options.config) if options.config else preset(options.preset)
    config = dataclasses.replace(config, train=_changed(config.train, options.set))
    if options.random_weights:  # nothing is frozen then
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone_pretrained=False))
    recipe = config.train
    with one_of_many(options.device):  # under torchrun the processes share the batch; the first one logs and saves
        size = recipe.batch_size // batch_parts(recipe)
        batches = open_batches(options.data, size, recipe.seed, config.model.short_side, recipe.balance)
        trainer = Trainer(
            options.run,
            config,
            batches,
            batches.names,
            batches.trainable,
            options.device,
            pretrained=not (options.random_weights or options.resume or options.start_from),
        )
        if options.resume:
            trainer.resume()
        elif trainer.state_path.exists():
            raise ValueError(
                f"{options.run} holds a run already: add --resume to go on with it, or name another folder with --run"
            )
        elif options.start_from:
            trainer.start_from(options.start_from)
        trainer.train(options.save_every, workers=options.workers)


def _changed(train, pairs: list[str]):
    """The recipe with KEY=VALUE changes; values are read as the field's own type."""
    changes = {}
    known = {f.name: type(getattr(train, f.name)) for f in dataclasses.fields(train)}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in known or not value:
            raise ValueError(f"--set {pair}: expected KEY=VALUE with KEY one of {sorted(known)}")
        try:
            changes[key] = {"true": True, "false": False}[value.lower()] if known[key] is bool else known[key](value)
        except (ValueError, KeyError):
            raise ValueError(f"--set {pair}: expected {key} to be {known[key].__name__}, got {value!r}") from None
    return dataclasses.replace(train, **changes)


def _distil(options: argparse.Namespace) -> None:
    from trex2_mini.weights.text_distillation import distil_checkpoint

    print(json.dumps(distil_checkpoint(options.checkpoint, options.out, options.steps)))


def _evaluate(options: argparse.Namespace) -> None:
    from trex2_mini.evaluation.repeat import repeated
    from trex2_mini.processes import one_of_many

    with one_of_many() as first:  # under torchrun the processes share the images; the first one reports
        result = repeated(
            options.draws, options.checkpoint, options.data, options.protocol, options.categories,
            reference=options.reference, examples=options.examples, points=options.points,
            synonyms=options.synonyms, baselines=options.baselines, limit=options.limit, seed=options.seed,
            split=options.split, threshold=options.threshold, tiles=options.tiles, resamples=options.bootstrap,
        )  # fmt: skip
        if first:
            _write_json(options.json, result)
            print(json.dumps({key: value for key, value in result.items() if key != "per_category"}, indent=2))


def _write_json(path: Path | None, result: dict) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


def _benchmark(options: argparse.Namespace) -> None:
    from trex2_mini.benchmark import as_table, run

    result = run(options.name, options.quick, options.repeats, options.preset, options.images)
    _write_json(options.json, result)
    print(as_table(result))


def _scorecard(options: argparse.Namespace) -> None:
    from trex2_mini.reproduction.scorecard import as_table, scorecard

    print(as_table(scorecard(options.checkpoint, options.draws, options.limit, options.json, options.source)), end="")


def _detect(options: argparse.Namespace) -> None:
    from trex2_mini.checkpoint import file_hash, load_model
    from trex2_mini.detector import Detector
    from trex2_mini.prompt_bank import PromptBank

    model, config, path = load_model(options.checkpoint)
    detector = Detector(model, config)
    bank = PromptBank.load(options.bank) if options.bank else None
    if options.image.is_dir():
        from trex2_mini.annotations import detect_folder

        if options.box or options.point or options.out or not options.json:
            raise ValueError(
                "of a folder: expected --text or --bank, and --json FILE for the result; boxes and points belong to one picture"
            )
        counts = detect_folder(
            detector, options.image, options.json, options.text, bank, options.threshold, file_hash(path)
        )
        print(", ".join(f"{key}: {value}" for key, value in counts.items()))
        print(f"COCO file: {options.json}")
        return
    if options.json:
        raise ValueError(f"--json is for a folder of pictures, but {options.image} is none")
    found = detector.detect(
        options.image,
        text=options.text,
        boxes={options.name: options.box} if options.box else None,
        points={options.name: options.point} if options.point else None,
        prompts=bank,
        score_threshold=options.threshold,
    )
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        print(f"{found.names[label]:24s} {score:.2f}  " + " ".join(f"{v:7.1f}" for v in box))
    print(f"{len(found)} detections with a score of at least {options.threshold}")
    if options.out:
        from trex2_mini.plots import save_detections

        save_detections(options.image, found, options.out)
        print(f"picture: {options.out}")


def _warm_start(options: argparse.Namespace) -> None:
    from trex2_mini.config import Config, preset
    from trex2_mini.weights.warm_start import warm_start_folder

    config = Config.load(options.config) if options.config else preset(options.preset)
    print(warm_start_folder(options.source, config, options.out, not options.random_weights))
    print(f"checkpoint: {options.out}")


def _reproduce(options: argparse.Namespace) -> None:
    from trex2_mini.paths import REPOSITORY
    from trex2_mini.reproduction.batches import SCALES, as_markdown, read_grid, read_scale, reproduce

    runs = (read_scale if options.scale in SCALES else read_grid)(options.scale)
    runs = [run for run in runs if run.notebook.stem.startswith(options.only or "")]
    if not runs:
        raise ValueError(f"{options.scale} has no notebook that begins with {options.only!r}")
    out = options.out or REPOSITORY / "runs" / "reproduce" / Path(options.scale).stem
    rows = reproduce(runs, out, options.workers, options.submitit)
    print(as_markdown(rows), end="")
    print(f"tables: {out}/table.csv, table.md, table.html")
    failed = {(row["notebook"], row["parameters"]): row["status"] for row in rows if row["status"] != "done"}
    if failed:
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again: {failed}")


def _ablate(options: argparse.Namespace) -> None:
    from trex2_mini.reproduction.ablations import VARIANTS, ablate, compare

    results = ablate(options.out, options.work, options.variants or list(VARIANTS), options.seeds, options.steps)
    for variant, measured in compare(results).items():
        shown = "; ".join(f"{m} {ap:.1f} ({d:+.1f} ± {half:.1f})" for m, (ap, d, half) in measured.items())
        print(f"{variant}: {shown}")


def _engine(options: argparse.Namespace) -> None:
    from trex2_mini.data_engine import effect, engines
    from trex2_mini.data_engine.phrases import find_parser
    from trex2_mini.data_engine.shards import run_engine
    from trex2_mini.datasets.emoji.sets import EMOJI_SETS, make_emoji_set
    from trex2_mini.datasets.registry import open_dataset
    from trex2_mini.datasets.scenes.catalogue import load_catalogue
    from trex2_mini.paths import REPOSITORY, read_names

    out = options.out or REPOSITORY / "runs" / f"engine-{options.name}"
    if options.name == "effect":
        result = effect.measure_effect(
            out, options.checkpoint, options.steps, options.seeds, images=options.images, workers=options.workers
        )
    else:
        score = {} if options.score is None else {"score": options.score}
        if options.name == "text":
            data = options.data or "emoji-captions"
            images, folder, captions, head = engines.read_captions(make_emoji_set(data) if data in EMOJI_SETS else data)
            parser, parse = find_parser(options.parser)
            print(f"noun phrases by {parser}")
            phrases = engines.phrases_of(captions, parse)
            engine = engines.TextEngine(phrases, similarity=options.similarity, more_than=options.more_than, **score)
            print(
                f"{len(engine.names)} phrases, {len(engine.dictionary)} of them in more than {options.more_than} captions"
            )
        else:
            dataset = open_dataset(options.data or "emoji-sa")
            images, folder = dataset.coco["images"], dataset.images
            head = {key: dataset.coco[key] for key in ("info", "licenses") if key in dataset.coco}
            names = read_names(options.names) if options.names else [c.name for c in load_catalogue() if not c.novel]
            kept = {"probability": options.probability, "min_instances": options.min_instances}
            engine = engines.VisualEngine(engines.boxes_of(dataset), names, **kept, **score)
        run = {"head": head, "shard": options.shard, "workers": options.workers}
        result = run_engine(engine, images[: options.limit], folder, out, options.checkpoint, **run)
        if options.truth:
            result |= effect.qualities(out, options.truth)
        print(f"set: {out}  (python -m trex2_mini data check {out})")
    _write_json(options.json, result)
    print(json.dumps(result, indent=2))


def _export(options: argparse.Namespace) -> None:
    from trex2_mini.detector import Detector
    from trex2_mini.model.text_prompt import check_names
    from trex2_mini.weights.onnx import export_onnx

    names = check_names(options.text) if options.text else []
    folder = export_onnx(Detector.load(options.checkpoint, "cpu"), options.out, *options.size, names)
    for path in sorted(folder.iterdir()):
        print(f"{path}  {path.stat().st_size:,} bytes")


def _info(options: argparse.Namespace) -> None:
    import resource
    import time

    import torch

    from trex2_mini.config import preset
    from trex2_mini.model.trex2 import TRex2

    torch.manual_seed(0)
    model = TRex2(preset(options.preset).model, pretrained=False).eval()
    parts = {"backbone alone": model.image_encoder.backbone, "total": model}
    for name, part in [*model.named_children(), *parts.items()]:
        print(f"{name:24s} {sum(p.numel() for p in part.parameters()):12,d} parameters")
    if options.size:
        if min(options.size) < 1:
            raise ValueError(f"--size expects a height and a width of at least 1 pixel, got {options.size}")
        with torch.inference_mode():
            start = time.perf_counter()
            features = model.encode_images([torch.rand(3, *options.size)])
            encoded = time.perf_counter()
            output = model.decode(features, model.encode_text(["cat", "dog"]))
            decoded = time.perf_counter()
        print(
            f"image {options.size[0]} x {options.size[1]}: {features.tokens.shape[1]:,} tokens, {output.boxes.shape[1]} queries"
        )
        print(
            f"encode {encoded - start:.2f} s, text prompts and decode {decoded - encoded:.2f} s, {torch.get_num_threads()} threads"
        )
        print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    sys.exit(main())
