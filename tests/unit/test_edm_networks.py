"""EDM networks: the official outputs, from both kinds of file, through converter, safetensors and defenses."""

import pytest
import torch

from drbench import weights
from drbench.checkpoints import formats, reading
from drbench.diffusion import networks
from drbench.draws import Draws
from drbench.errors import DrbenchError
from methods.consistency.defense import Consistency
from methods.denoised.defense import Denoised
from methods.diffpure.defense import DiffPure
from methods.diffusion_classifier.defense import DiffusionClassifier
from methods.multiscale.defense import MultiScale
from tests.parity import PARITY, assert_equal_outputs, needs_parity, recorded

SHAPE = (3, 32, 32)
SMALL = {"img_resolution": 16, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
SONG = {"kind": "edm_song", **SMALL}
NCSNPP = SONG | {
    "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
ADM = {"kind": "edm_dhariwal", **SMALL, "model_channels": 64, "label_dim": 4}
KINDS = {"ddpmpp": SONG | {"label_dim": 4, "augment_dim": 9}, "ncsnpp": NCSNPP, "adm": ADM,
         "skips": SONG | {"encoder_type": "skip", "decoder_type": "skip"}}  # fmt: skip


def made(spec, shape=(3, 16, 16)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return networks.build(spec, shape, 4).eval()


@pytest.fixture(scope="module", params=["edm_ddpmpp_c16.pt", "edm_ddpmpp_c16.pkl"])
def converted(request):
    if not PARITY.is_dir():
        pytest.skip("needs numeric fixtures in $DRBENCH_SHARED/data/parity")
    return formats.convert(PARITY / request.param, "edm")


@torch.no_grad()
def test_official_outputs(converted):
    denoiser = networks.build(converted.spec, SHAPE, 10)
    denoiser.load_state_dict(converted.state, strict=True)
    io = recorded("edm_ddpmpp_c16")
    ours = denoiser.eval()(io["x"], io["sigma"], io["class_labels"].argmax(1))
    assert_equal_outputs(ours, io["out"])
    assert_equal_outputs(denoiser(io["x"], io["sigma"]), io["out_nolabel"])
    assert_equal_outputs(denoiser(io["x"][:1], float(io["sigma"][0])), io["out_nolabel"][:1])
    assert (ours - io["out_nolabel"]).abs().max() > 5e-4  # the label matters


def test_spec_is_what_the_readme_of_the_file_says(converted):
    said = {"img_resolution": 32, "label_dim": 10, "augment_dim": 9, "model_channels": 16, "channel_mult": [2, 2, 2],
            "channel_mult_emb": 4, "num_blocks": 2, "attn_resolutions": [16], "sigma_data": 0.5,
            "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
            "decoder_type": "standard", "resample_filter": [1, 1], "kind": "edm_song", "img_channels": 3}  # fmt: skip
    assert {key: value for key, value in converted.spec.items() if key != "dropout"} == said
    assert converted.role == "denoiser"


@needs_parity
@pytest.mark.parametrize("images", [slice(1), pytest.param(slice(1, 3), marks=pytest.mark.slow)])
def test_the_official_classifier(images, monkeypatch):
    """Nodes, released weights and given noise: the sum of DiffusionClassifier, through our own defense."""
    io, converted = recorded("edm_classifier_t16"), formats.convert(PARITY / "edm_ddpmpp_c16.pt", "edm")
    x = io["image01"][images]
    state = {f"denoiser.{key}": value for key, value in converted.state.items()}
    made = DiffusionClassifier.from_checkpoint(
        state, input_shape=SHAPE, nodes=16, logit_scale=1.0, denoiser=converted.spec
    ).eval()
    terms = made._terms(0.0, 16)
    torch.testing.assert_close(terms.level, io["sigma"].double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.weight, io["weight"].double(), rtol=1e-4, atol=0)
    noise = io["noise"][None, :, None].expand(len(x), -1, -1, -1, -1, -1)  # one a node, for all images and classes
    monkeypatch.setattr(made, "_noise", lambda draws, terms: noise)
    assert_equal_outputs(made.logits(x, 0.0, Draws.seeded(0, len(x))), io["logits"][images])


def test_saved_twice_the_same_and_loaded_as_it_was(converted, tmp_path):
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    saved = [formats.save(converted, path, "0" * 64, "edm", source="x/edm.pkl") for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes() and saved[0].sha256 == saved[1].sha256
    small = {"classifier.body.0.weight"}
    defense = Denoised(SHAPE, 10, denoiser=converted.spec, width=4)
    rest = {key: value for key, value in defense.state_dict().items() if key.startswith("classifier.")}
    assert small <= rest.keys()
    other = weights.write(str(tmp_path / "c.safetensors"), rest, {})
    both = weights.read([saved[0], other])
    loaded = Denoised.from_checkpoint(both, input_shape=SHAPE, denoiser=converted.spec, width=4).state_dict()
    for key, value in converted.state.items():
        assert torch.equal(loaded.pop(f"denoiser.{key}"), value)
    assert loaded.keys() == rest.keys() and all(torch.equal(loaded[key], rest[key]) for key in rest)


def test_sizes_of_the_published_networks():
    """Parameters, and tensors with buffers and sigma_data, of the files for CIFAR-10, CIFAR-100 and ImageNet-64."""
    cifar = {"kind": "edm_song", "img_resolution": 32, "channel_mult": [2, 2, 2], "augment_dim": 9}
    imagenet = {"kind": "edm_dhariwal", "img_resolution": 64, "label_dim": 1000}
    rows = [(cifar | {"label_dim": 10}, 55_735_299, 428), (cifar, 55_733_891, 426),
            (cifar | {"label_dim": 100}, 55_746_819, 428), (imagenet, 295_899_267, 554)]  # fmt: skip
    for spec, parameters, tensors in rows:
        with torch.device("meta"):
            network = networks.build(spec, (3, spec["img_resolution"], spec["img_resolution"]), 10)
        assert sum(one.numel() for one in network.parameters()) == parameters
        assert len(network.state_dict()) == tensors


@pytest.mark.parametrize("name", KINDS)
def test_every_architecture_is_read_off_its_tensors(name, tmp_path):
    """A state dict as NVlabs/edm writes it, of each architecture, becomes the same function again."""
    denoiser = made(KINDS[name])
    official = {f"model.{key}": value for key, value in denoiser.network.state_dict().items()}
    torch.save(official, tmp_path / "edm.pt")
    found = formats.convert(tmp_path / "edm.pt", "edm")
    again = networks.build(found.spec, (3, 16, 16), 4).eval()
    again.load_state_dict(found.state)
    z, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 3.0])
    labels = torch.tensor([0, 3]) if found.spec["label_dim"] else None
    with torch.no_grad():
        assert torch.equal(again(z, sigma, labels), denoiser(z, sigma, labels))


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_independent_and_gradients_flow(name):
    denoiser = made(KINDS[name]).double()
    z = torch.randn(3, 3, 16, 16, dtype=torch.double, requires_grad=True)
    sigma = torch.tensor([0.2, 1.0, 5.0], dtype=torch.double)
    out = denoiser(z, sigma)
    assert torch.allclose(out[1:2], denoiser(z[1:2], 1.0), atol=1e-10)
    (slope,) = torch.autograd.grad(out[1].sum(), z)
    assert slope[1].abs().min() >= 0 and slope[1].abs().max() > 0
    assert not slope[0].any() and not slope[2].any()
    step = 1e-5 * torch.randn_like(z[1:2])
    moved = denoiser(z[1:2].detach() + step, 1.0).sum() - denoiser(z[1:2].detach() - step, 1.0).sum()
    torch.testing.assert_close(moved, 2 * (slope[1:2] * step).sum(), rtol=1e-5, atol=1e-9)


def test_fir_filters_keep_constants():
    """Going down averages, going up repeats: inside the image a constant stays."""
    from drbench.diffusion.networks.edm_blocks import Conv

    for taps in ((1, 1), (1, 3, 3, 1)):
        x = torch.full((1, 2, 8, 8), 3.0)
        down, up = Conv(2, 2, 0, "down", taps)(x), Conv(2, 2, 0, "up", taps)(x)
        assert down.shape == (1, 2, 4, 4) and up.shape == (1, 2, 16, 16)
        torch.testing.assert_close(down[..., 1:-1, 1:-1], torch.full((1, 2, 2, 2), 3.0))
        torch.testing.assert_close(up[..., 2:-2, 2:-2], torch.full((1, 2, 12, 12), 3.0))


def test_fused_downsampling_is_convolution_then_filter():
    from drbench.diffusion.networks.edm_blocks import Conv

    conv = Conv(2, 3, 3, "down", (1, 3, 3, 1), fused=True)
    x = torch.randn(1, 2, 8, 8)
    wide = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    filtered = Conv(3, 3, 0, "down", (1, 3, 3, 1))(wide)
    torch.testing.assert_close(conv(x)[..., 1:-1, 1:-1], filtered[..., 1:-1, 1:-1])


@pytest.mark.parametrize(
    "defense",
    [
        lambda spec: Denoised((3, 16, 16), 4, denoiser=spec, width=4),
        lambda spec: Denoised((3, 16, 16), 4, "pf_ode", steps=3, denoiser=spec, width=4),
        lambda spec: DiffPure((3, 16, 16), 4, steps=3, denoiser=spec, width=4),
        lambda spec: MultiScale((3, 16, 16), 4, denoiser=spec, width=4),
        lambda spec: Consistency((3, 16, 16), 4, denoiser=spec | {"t_min": 0.002}, width=4),
        lambda spec: Consistency((3, 16, 16), 4, function="denoiser", objective="tuning", denoiser=spec, width=4),
        lambda spec: DiffusionClassifier((3, 16, 16), 4, nodes=3, denoiser=spec),
    ],
    ids=["one_shot", "pf_ode", "diffpure", "multiscale", "consistency", "control", "diffusion_classifier"],
)
def test_defenses_with_an_edm_network(defense):
    """At every declared level: finite logits, as many network calls as stated, a gradient, no sharing between rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = defense(KINDS["ddpmpp"]).eval().requires_grad_(False)
    calls = []
    built.denoiser.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    for sigma in built.sigmas:
        calls.clear()
        z = torch.rand(2, 3, 16, 16) + sigma * torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            logits = built.logits(z, sigma, Draws.seeded(0, 2))
        assert logits.isfinite().all() and logits.shape == (2, 4)
        assert sum(calls) == 2 * built.nfe(sigma).get("denoiser", 0)
        z.requires_grad_(True)
        (slope,) = torch.autograd.grad(built.attack_logits(z, sigma, Draws.seeded(0, 2))[0, 1], z)
        assert slope[0].isfinite().all() and slope[0].any() and not slope[1].any()


def test_refusals(tmp_path):
    with pytest.raises(DrbenchError, match="unknown kind 'edm_sung'; did you mean 'edm_song'"):
        made({"kind": "edm_sung"})
    with pytest.raises(DrbenchError, match=r"for images \(3, 16, 16\), but the data are \(3, 32, 32\)"):
        made(SONG, (3, 32, 32))
    with pytest.raises(DrbenchError, match=r"cannot be built with.*chanels"):
        made(SONG | {"chanels": 3})
    with pytest.raises(DrbenchError, match="must be divisible by num_groups"):
        made(SONG | {"model_channels": 200})
    with pytest.raises(DrbenchError, match="embedding_type is one of positional, fourier, got 'cosine'"):
        made(SONG | {"embedding_type": "cosine"})
    with pytest.raises(DrbenchError, match="64 channels a head"):
        made(ADM | {"model_channels": 8})
    with pytest.raises(DrbenchError, match="4 classes needs a denoiser that knows them, got one of no classes"):
        DiffusionClassifier((3, 16, 16), 4, denoiser=SONG)
    with pytest.raises(DrbenchError, match=r"consistency.*got a denoiser"):
        Consistency((3, 16, 16), 4, denoiser=SONG)
    state = {f"model.{key}": value for key, value in made(SONG).network.state_dict().items()}
    for change, message in (
        ({"model.map_layer0.weight": None}, "not the tensors of an EDM network: .*map_layer0.weight"),
        ({"model.enc.16x16_block0.conv0.bias": None}, "1 tensors missing, first 'network.enc.16x16_block0.conv0.bias'"),
        ({"model.extra": torch.ones(1)}, "1 unexpected, first 'network.extra'"),
        ({"model.map_layer1.bias": torch.ones(3)}, "of another shape, first 'network.map_layer1.bias'"),
    ):
        found = {key: value for key, value in (state | change).items() if value is not None}
        torch.save(found, tmp_path / "a.pt")
        with pytest.raises(DrbenchError, match=message):
            formats.convert(tmp_path / "a.pt", "edm")
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(DrbenchError, match="expected names such as"):
        formats.convert(tmp_path / "a.pt", "edm")
    with pytest.raises(DrbenchError, match="unknown checkpoint format 'edn'; did you mean 'edm'"):
        formats.convert(tmp_path / "a.pt", "edn")


@needs_parity
def test_a_configuration_that_the_file_contradicts():
    with pytest.raises(DrbenchError, match=r"do not fit the network: .* missing"):
        formats.convert(PARITY / "edm_ddpmpp_c16.pt", "edm", num_blocks=3)
    with pytest.raises(DrbenchError, match="unexpected"):
        formats.convert(PARITY / "edm_ddpmpp_c16.pkl", "edm", label_dim=0)
    assert reading.sniff(PARITY / "edm_ddpmpp_c16.pkl") == "pickle"
