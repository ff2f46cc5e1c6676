"""What the model promises: images and prompts do not disturb one another, any number of them, the paper's numbers."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from tiny import TINY_MODEL, double_precision, picture, seeded_model

from trex2_mini.config import Config, TrainConfig, preset
from trex2_mini.model import text_prompt
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import RegionPrompts

BOX, BOX2, POINT = (
    torch.tensor([[0.4, 0.5, 0.2, 0.3]]),
    torch.tensor([[0.6, 0.3, 0.3, 0.2]]),
    torch.tensor([[0.4, 0.5]]),
)
NO_BOX, NO_POINT = torch.zeros(0, 4), torch.zeros(0, 2)
NAMES = ["cat", "dog", "traffic light"]


@pytest.fixture(scope="module")
def nano():
    """In float64, for comparisons of the same sums in other batches."""
    with double_precision():
        return seeded_model(preset("nano").model)


@pytest.fixture(scope="module")
def tiny():
    return seeded_model()


@pytest.fixture(scope="module")
def features(tiny):
    with torch.no_grad():
        return tiny.encode_images([picture(64, 96)])


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@double_precision()
@pytest.mark.parametrize("kind", ["text", "boxes", "points", "boxes and points"])
def test_a_batch_of_different_sizes_is_each_image_alone(nano, kind):
    """Boxes and logits of an image do not depend on its neighbours, whatever prompts it."""
    images = [picture(160, 192, 1), picture(130, 100, 2), picture(96, 224, 3), picture(160, 192, 4)]
    own = {"boxes": (torch.cat([BOX, BOX2]), NO_POINT), "points": (NO_BOX, POINT), "boxes and points": (BOX2, POINT)}

    def run(chosen):
        features = nano.encode_images(chosen)
        if kind == "text":
            return nano.decode(features, nano.encode_text(NAMES))
        region = [own[kind], (BOX, NO_POINT)]
        return nano.decode(features, nano.encode_visual(features, RegionPrompts.from_lists([region] * len(chosen))))

    together = run(images)
    for index, image in enumerate(images):
        alone = run([image])
        close(together.logits[index], alone.logits[0], 1e-9)
        close(together.boxes[index], alone.boxes[0], 1e-9)
    assert together.boxes.std(0).mean() > 0.01, "the images give the same boxes: no test"


def visual(model: TRex2, features, *categories):
    return model.encode_visual(features, RegionPrompts.from_lists([list(categories)]))[0]


def test_a_category_does_not_depend_on_the_others(tiny, features):
    """V of a category is the same alone, beside other categories, and padded to a larger number of prompts."""
    many = (torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.2, POINT)
    kinds = [(BOX, NO_POINT), many, (NO_BOX, POINT), (BOX2, POINT)]
    together = visual(tiny, features, *kinds)
    for index, kind in enumerate(kinds):
        close(together[index], visual(tiny, features, kind)[0], 1e-5)
    assert torch.pdist(together).min() > 0.01


def test_images_with_different_numbers_of_categories(tiny):
    """A batch may hold images with 3, 1 and no categories; what is there equals each image alone."""
    images = [picture(64, 96, seed) for seed in range(3)]
    regions = [[(BOX, NO_POINT), (NO_BOX, POINT), (BOX2, POINT)], [(BOX2, NO_POINT)], []]
    vectors = tiny.encode_visual(tiny.encode_images(images), RegionPrompts.from_lists(regions))
    assert vectors.shape == (3, 3, TINY_MODEL.dim) and vectors.isfinite().all()
    for index in (0, 1):
        close(vectors[index, : len(regions[index])], visual(tiny, tiny.encode_images([images[index]]), *regions[index]))


def test_a_point_is_not_a_tiny_box(tiny, features):
    """A point and a box of no size at the same place give different vectors."""
    tiny_box = torch.tensor([[0.4, 0.5, 0.0, 0.0]])
    point, box = visual(tiny, features, (NO_BOX, POINT), (tiny_box, NO_POINT))
    assert (point - box).abs().max() > 0.1


def test_the_order_of_prompts_does_not_matter(tiny, features):
    """A category's prompts are a set."""
    boxes = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.2
    forward, backward = visual(tiny, features, (boxes, POINT), (boxes.flip(0), POINT))
    close(forward, backward, 1e-5)
    assert (forward - visual(tiny, features, (boxes[:4], POINT))[0]).abs().max() > 1e-3, "every prompt counts"


def test_a_further_prompt_reuses_what_the_image_alone_gave(tiny):
    """The second prompt on an encoded image projects no token again, and answers as on a freshly encoded image; with
    gradients nothing is kept.
    """
    image, prompts = picture(64, 96), RegionPrompts.from_lists([[(BOX, NO_POINT), (NO_BOX, POINT)]])
    sources = [m.value_proj for m in tiny.modules() if hasattr(m, "value_proj")] + [tiny.box_decoder.token_projection]
    calls: list[int] = []
    with torch.no_grad():
        fresh = tiny.encode_images([image])
        again = tiny.encode_images([image])
        tiny.decode(again, tiny.encode_visual(again, RegionPrompts.from_lists([[(BOX2, NO_POINT)]])))
        hooks = [source.register_forward_hook(lambda *_: calls.append(1)) for source in sources]
        second = tiny.decode(again, tiny.encode_visual(again, prompts))
        assert not calls
        first = tiny.decode(fresh, tiny.encode_visual(fresh, prompts))
        assert calls
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(second.logits, first.logits, rtol=0, atol=0)
    torch.testing.assert_close(second.boxes, first.boxes, rtol=0, atol=0)
    with torch.enable_grad():
        features = tiny.encode_images([image])
        tiny.decode(features, tiny.encode_visual(features, prompts))
        assert not features.kept


def test_absent_prompts_never_appear(tiny, features):
    """A prompt with mask False scores nothing and leaves the others' logits and boxes as they are."""
    prompts = tiny.encode_text(NAMES)
    alone = tiny.decode(features, prompts[:2])
    masked = tiny.decode(features, prompts, torch.tensor([[True, True, False]]))
    assert (masked.logits[..., 2].sigmoid() == 0).all()
    close(masked.logits[..., :2], alone.logits, 1e-5)
    close(masked.boxes, alone.boxes, 1e-5)


def test_an_image_without_any_prompt_in_the_batch(tiny):
    """All prompts absent on one image: it has no score above zero and nothing is NaN; the other image is as it was."""
    features = tiny.encode_images([picture(64, 64, 1), picture(64, 64, 2)])
    prompts = tiny.encode_text(NAMES)
    output = tiny.decode(features, prompts, torch.tensor([[True] * 3, [False] * 3]))
    assert output.boxes.isfinite().all() and (output.logits[1].sigmoid() == 0).all()
    close(output.logits[0], tiny.decode(features, prompts).logits[0], 1e-5)


@pytest.mark.parametrize("count", [1, 300])
def test_any_number_of_prompts(tiny, features, count):
    """One prompt and 300 prompts: as many logits, boxes inside the image."""
    output = tiny.decode(features, torch.randn(1, count, TINY_MODEL.dim))
    assert output.logits.shape == (1, TINY_MODEL.num_queries, count) and output.logits.isfinite().all()
    assert ((output.boxes >= 0) & (output.boxes <= 1)).all()


@pytest.mark.parametrize("shape", [(0, 32), (1, 0, 32), (2, 3, 32), (3, 16), (32,)])
def test_unfitting_prompts_are_refused(tiny, features, shape):
    """No prompt, a wrong batch, a wrong D: ValueError with the shape that was expected."""
    with pytest.raises(ValueError, match="expected prompts of shape"):
        tiny.decode(features, torch.zeros(shape))


@pytest.mark.parametrize("names", [[], "", " , ", ["cat", ""], ["cat", 3]])
def test_unfitting_names_are_refused(tiny, names):
    """An empty list, empty names and non-strings: ValueError."""
    with pytest.raises(ValueError, match="non-empty name"):
        tiny.encode_text(names)


@pytest.mark.parametrize("images", [[], [torch.zeros(1, 8, 8)], [torch.zeros(3, 0, 8)], [torch.zeros(8, 8)]])
def test_unfitting_images_are_refused(tiny, images):
    """No image, a wrong number of channels, no pixels: ValueError."""
    with pytest.raises(ValueError, match="expected"):
        tiny.encode_images(images)


@double_precision()
def test_images_smaller_than_a_cell(nano):
    """An image of 1 x 1 pixel gives finite outputs."""
    output = nano.decode(nano.encode_images([torch.zeros(3, 1, 1)]), nano.encode_text(NAMES))
    assert output.logits.isfinite().all() and output.boxes.isfinite().all()


def test_auxiliary_outputs_end_with_the_last_layer(tiny, features):
    """Earlier layers and the encoder's selection are there for training; asking for them changes nothing else."""
    prompts = tiny.encode_text(NAMES)
    plain, full = tiny.decode(features, prompts), tiny.decode(features, prompts, auxiliary=True)
    assert len(full.auxiliary) == TINY_MODEL.decoder_layers and not plain.auxiliary and not full.denoising
    assert torch.equal(plain.logits, full.logits) and torch.equal(plain.boxes, full.boxes)


def test_text_cache(monkeypatch):
    """A name is encoded once while the weights stay; an optimizer step and load_state_dict make it new."""
    model = seeded_model()
    encoder, calls = model.text_prompt_encoder, []
    original = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda names: calls.append(list(names)) or original(names))
    first = model.encode_text(["cat", "dog"])
    assert torch.equal(model.encode_text(["dog", "cat", "dog"]), first[[1, 0, 1]]) and calls == [["cat", "dog"]]
    close(model.encode_text("bird, cat")[1], first[0], 0)
    assert calls[1:] == [["bird"]]
    saved = {k: v.clone() for k, v in model.state_dict().items()}

    with torch.enable_grad():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model.train().encode_text(["cat"]).sin().sum().backward()
        optimizer.step()
    changed = model.eval().encode_text(["cat", "dog"])
    assert (changed - first).abs().max() > 1e-3, "the cache outlived an optimizer step"
    close(changed, original(["cat", "dog"]), 1e-6)
    model.load_state_dict(saved)
    close(model.encode_text(["cat", "dog"]), first, 1e-6)


def test_text_cache_is_bounded(monkeypatch):
    """Names without end: the cache, the tokens and the tokenizer's own memory begin anew; the embeddings
    are the same.
    """
    monkeypatch.setattr(text_prompt, "KEPT", 10)
    encoder = seeded_model().text_prompt_encoder
    first = encoder(["thing a0"])
    for number in range(60):
        names = [f"thing a{number}", f"other b{number}"]
        with torch.inference_mode():
            assert encoder(names).shape == (2, encoder.projection.out_features)
        assert len(encoder._cache) <= 10 and len(encoder._tokens) <= 12 and len(encoder.tokenizer.cache) <= 40
    close(encoder(["thing a0"]), first, 1e-6)
    assert len(encoder([f"many {number}" for number in range(15)])) == 15


def test_text_cache_sees_replaced_parameters():
    """load_state_dict(assign=True) puts other tensors in the parameters' place: the cache must not survive it."""
    model, other = seeded_model(seed=0), seeded_model(seed=1)
    model.encode_text(["cat"])
    model.load_state_dict(other.state_dict(), assign=True)
    close(model.encode_text(["cat"]), other.encode_text(["cat"]), 1e-6)


def test_cached_text_serves_with_gradients_after_inference():
    """What a detection left in the cache (inference mode) can be used in a computation that is differentiated."""
    model = seeded_model()
    with torch.inference_mode():
        model.encode_text(["cat"])
    with torch.enable_grad():
        features = model.encode_images([picture(64, 64)])
        model.decode(features, model.encode_text(["cat"])).logits.sum().backward()


def test_training_reaches_every_parameter(tiny):
    """Every parameter has a gradient after one text and one visual pass: nothing is dead weight."""
    model = seeded_model(seed=3).train()
    with torch.enable_grad():
        features = model.encode_images([picture(64, 64, 1), picture(64, 64, 2)])
        regions = RegionPrompts.from_lists([[(BOX, NO_POINT), (NO_BOX, POINT)], [(BOX2, POINT), (NO_BOX, POINT)]])
        prompts = torch.cat([model.encode_visual(features, regions), model.encode_text(NAMES).expand(2, -1, -1)], 1)
        noisy = model.denoising(
            [BOX, BOX2],
            [torch.tensor([0]), torch.tensor([1])],
            prompts,
            None,
            4,
            0.4,
            0.25,
            torch.Generator().manual_seed(0),
        )
        output = model.decode(features, prompts, None, noisy, auxiliary=True)
        sum(o.logits.sin().sum() + o.boxes.sum() for o in [output, *output.auxiliary, *output.denoising]).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_presets_carry_the_papers_numbers():
    """swin_t and swin_l: section 3 and the appendix of the paper, DINO's values where it refers to DINO."""
    for name, backbone, batch in (("swin_t", "swin_tiny", 128), ("swin_l", "swin_large", 64)):
        config = preset(name)
        model, train = config.model, config.train
        assert model.backbone.startswith(backbone) and train.batch_size == batch
        assert (model.num_queries, model.encoder_layers, model.decoder_layers) == (900, 6, 6)
        assert (model.dim, model.heads, model.points, len(model.strides)) == (256, 8, 4, 4)
        assert (model.prompt_blocks, model.prompt_ffn_dim) == (3, 1024)
        assert (model.text.width, model.text.layers, model.text.heads, model.text.context_length) == (512, 12, 8, 77)
        assert (train.lr, train.lr_backbone, train.lr_text) == (1e-4, 1e-5, 1e-5)
        assert (train.loss_class, train.loss_l1, train.loss_giou, train.loss_align) == (1, 5, 2, 1)
        assert (train.cost_class, train.cost_l1, train.cost_giou) == (2, 5, 2)
        assert train.point_probability == 0.5 and train.visual_per_text == 8 and train.amp


def test_swin_t_runs():
    """The paper's model, random weights, runs on a small image: 900 queries, CLIP-B's tower (63.4 M parameters)."""
    began = time.perf_counter()
    torch.manual_seed(0)
    model = TRex2(preset("swin_t").model, pretrained=False).eval()
    features = model.encode_images([picture(256, 320)])
    assert features.shapes == [(32, 40), (16, 20), (8, 10), (4, 5)]
    vectors = model.encode_visual(features, RegionPrompts.from_lists([[(BOX, NO_POINT)]]))
    output = model.decode(features, torch.cat([vectors, model.encode_text(NAMES)[None]], 1))
    assert output.logits.shape == (1, 900, 4) and output.logits.isfinite().all()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sum(p.numel() for p in model.text_prompt_encoder.tower.parameters()) == 63_428_096
    print({k: f"{v / 1e6:.1f} M" for k, v in counts.items()}, f"{time.perf_counter() - began:.1f} s")


def test_swin_l_builds():
    """Swin-L's shapes fit together (on the meta device: no memory, no time)."""
    with torch.device("meta"):
        model = TRex2(preset("swin_l").model, pretrained=False)
    assert 190e6 < sum(p.numel() for p in model.image_encoder.backbone.parameters()) < 200e6


@pytest.mark.parametrize("name", ["nano", "swin_t", "swin_l"])
def test_a_configuration_survives_json(name):
    """What to_json writes, from_json reads back equal."""
    config = preset(name)
    assert Config.from_json(config.to_json()) == config
    changed = dataclasses.replace(config, train=TrainConfig(steps=3, lr=1.0))
    assert Config.from_json(changed.to_json()) == changed


def test_pretrained_weights_that_cannot_be_had_are_an_error_that_says_what_to_do(monkeypatch):
    """Random weights come only when they are asked for; no network is touched here."""

    def unreachable(*_, **options):
        if options.get("pretrained"):
            raise OSError("no network")
        return create(*_, **options)

    import timm

    create = timm.create_model
    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(ValueError, match=r"ImageNet weights of 'swin_tiny.*no network.*--random-weights"):
        TRex2(preset("swin_t").model)
    tiny = dataclasses.replace(TINY_MODEL, text=dataclasses.replace(TINY_MODEL.text, pretrained="openai"))
    monkeypatch.setattr("open_clip.create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ValueError, match=r"CLIP ViT-B-16 weights 'openai'.*no network.*--random-weights"):
        TRex2(tiny)
    assert isinstance(TRex2(tiny, pretrained=False), TRex2)
