"""Fixed numbers from executing other implementations of what the published model consists of.

Weights and inputs are those of `support.golden`; every number was printed by the other code, none
by this repository. Versions and the lines that made them stand beside each table.
"""

import pytest
import torch
from support.golden import fill, sample, wave
from support.small_paper_model import make_preset

from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2Stream, Wav2Vec2StreamConfig
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.layers.attention import GatedConvFFN, LinearAttention, attend
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.kl_ae import KLAutoencoder
from letstalk_rt.paper.spatial import SoftmaxAttention
from letstalk_rt.paper.wav2vec_whole import WholeWav2Vec2

# The authors' code at github.com/zhang-haojie/LetsTalk, commit 26660f1, timm 1.0.31, torch 2.13:
#   v1 = model_cat.VDT(input_size=8, patch_size=2, in_channels=4, hidden_size=64, context_dim=16,
#                      depth=2, num_heads=4, num_frames=4, mlp_ratio=2.0)
#   v2 = lite_cat_long's model of the same arguments, with input_size=4, patch_size=1 and
#        initial_frames=2
# with the weights of `fill` under their names, called as
#   v1(x, 1000 * t, cond=portrait[:, None].expand(-1, 4, -1, -1, -1), audio_embed=tokens)
#   v2(..., motion=memory)
# and printed by `sample`.
AUTHORS = {
    "softmax": [-3.013165, -2.330067, 0.872165, -1.681492, -0.197945, -1.011913, 0.332769,
                0.703564, -0.0772, 1.240427],
    "linear": [-3.055094, -0.489938, 0.292386, 1.040213, -0.757705, -0.851034, 0.4169, -0.62558,
               -0.130689, 1.261294],
}  # fmt: skip
SHAPES = {
    "softmax": {"side": 8, "patch": 2, "attention": "softmax", "memory": 0},
    "linear": {},
}


@pytest.mark.parametrize("attention", sorted(AUTHORS))
def test_both_versions_of_the_denoiser_agree_with_the_authors_code(attention):
    config = make_preset(**SHAPES[attention]).denoiser
    denoiser = PaperModel(make_preset(**SHAPES[attention])).denoiser.requires_grad_(False)
    fill(denoiser)
    side, memory = config.side, config.memory
    out = denoiser(
        wave(2, 4, 4, side, side),
        torch.tensor([0.3, 0.8]),
        wave(2, 4, 3, 16, phase=2),
        wave(2, 4, side, side, phase=1),
        wave(2, memory, 4, side, side, phase=3),
    )
    assert sample(out) == pytest.approx(AUTHORS[attention], abs=1e-5)


# diffusers 0.42.1, torch 2.13, x = wave(2, 3, 4, 4, 4), noise with phase 1, mix = half of phase 2:
#   linear = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear",
#                 clip_sample=False)
#   s = DDPMScheduler(**linear, variance_type="learned_range")
#   s.add_noise(x, noise, torch.tensor([7, 640]))
#   s.set_timesteps(timesteps=[999, 799, 599, 400, 200, 0])
#   s.step(output, t, x).prev_sample with zeros in place of `randn_tensor`
#   s._get_variance(t, predicted_variance=mix), the logarithm; not at 0, where no noise is added
NOISED = [
    0.030998,
    0.09871,
    -0.820234,
    0.334637,
    0.600426,
    1.064102,
    -0.563347,
    -0.258857,
    0.008092,
    0.719923,
]
MEANS = {
    0: [
        -0.008416,
        0.057749,
        -0.776548,
        0.362689,
        0.992792,
        0.585714,
        -0.989385,
        0.613264,
        0.014368,
        0.69379,
    ],
    200: [
        -0.608734,
        -0.551298,
        -0.286519,
        0.869558,
        0.88398,
        0.013432,
        -0.906011,
        0.996789,
        -0.003015,
        0.736997,
    ],
    400: [
        -1.216573,
        -1.143372,
        -0.081121,
        1.514754,
        1.142853,
        -0.34565,
        -1.189243,
        1.610741,
        -0.015193,
        1.151125,
    ],
    599: [
        -2.019986,
        -1.919891,
        0.118784,
        2.400033,
        1.575867,
        -0.766019,
        -1.65411,
        2.477775,
        -0.029954,
        1.773007,
    ],
    799: [
        -3.256145,
        -3.114656,
        0.426205,
        3.762226,
        2.24232,
        -1.412693,
        -2.369573,
        3.811947,
        -0.052663,
        2.743454,
    ],
    999: [
        -5.048122,
        -4.842762,
        0.826158,
        5.757647,
        3.266431,
        -2.3155,
        -3.46451,
        5.781465,
        -0.08473,
        4.178306,
    ],
}
LOG_VARIANCES = {
    200: [
        -3.288453,
        -3.348882,
        -5.617939,
        -7.170629,
        -6.113986,
        -4.157213,
        -4.091224,
        -7.12278,
        -5.104997,
        1.460627,
    ],
    400: [
        -0.582036,
        -0.588367,
        -0.826079,
        -0.988743,
        -0.878046,
        -0.67305,
        -0.666136,
        -0.98373,
        -0.772342,
        0.153019,
    ],
    599: [
        -0.195031,
        -0.196433,
        -0.249082,
        -0.285109,
        -0.260592,
        -0.215189,
        -0.213658,
        -0.283999,
        -0.23718,
        0.033891,
    ],
    799: [
        -0.067757,
        -0.067941,
        -0.074821,
        -0.079528,
        -0.076325,
        -0.070392,
        -0.070191,
        -0.079383,
        -0.073265,
        0.004429,
    ],
    999: [
        -0.027102,
        -0.027113,
        -0.027529,
        -0.027814,
        -0.02762,
        -0.027262,
        -0.027249,
        -0.027805,
        -0.027435,
        0.000268,
    ],
}


def diffusion_inputs():
    x, noise, mix = (wave(2, 3, 4, 4, 4, phase=phase) for phase in range(3))
    return x, noise, torch.cat([noise, 0.5 * mix], 2)


def test_noise_is_added_as_diffusers_adds_it():
    x, noise, _ = diffusion_inputs()
    noised = Diffusion().add_noise(x, torch.tensor([7, 640]), noise)
    assert sample(noised) == pytest.approx(NOISED, abs=1e-5)


@pytest.mark.parametrize("number, step", list(enumerate(sorted(MEANS))))
def test_a_step_of_ddpm_over_few_steps_is_that_of_diffusers(number, step):
    x, _, output = diffusion_inputs()
    diffusion = Diffusion(len(MEANS))
    assert int(diffusion.steps[number]) == step
    guess = diffusion.predict(output, x, torch.full((2,), number))
    assert sample(guess.mean) == pytest.approx(MEANS[step], abs=1e-5)
    if step in LOG_VARIANCES:
        assert sample(guess.log_variance) == pytest.approx(LOG_VARIANCES[step], abs=3e-4)


# diffusers 0.42.1: s = DDIMScheduler(**linear), s.set_timesteps(1000), and for each t
#   x = s.step(t / 1000 * x + 0.05 * torch.sin(3 * x), t, x).prev_sample
DDIM = [
    0.0,
    0.137395,
    -3.586028,
    0.994934,
    4.991416,
    2.30545,
    -4.967314,
    2.388103,
    0.063883,
    3.250562,
]


def test_the_whole_chain_of_ddim_ends_as_that_of_diffusers():
    def predict(x, t):
        noise = t.view(-1, 1, 1, 1, 1) * x + 0.05 * torch.sin(3 * x)
        return torch.cat([noise, torch.zeros_like(x)], 2)

    assert sample(Diffusion().ddim(predict, wave(2, 3, 4, 4, 4))) == pytest.approx(DDIM, abs=1e-4)


# torch 2.13: F.scaled_dot_product_attention(q, k, v), and with attn_mask=mask; then
#   nn.MultiheadAttention(32, 4, batch_first=True)(x, x, x) with the weights of SoftmaxAttention
TORCH = [
    -0.111047,
    -0.186123,
    -0.090485,
    0.314194,
    0.438709,
    -0.270991,
    -0.454219,
    -0.421418,
    0.011328,
    0.253636,
]
TORCH_MASKED = [
    -0.111594,
    -0.06117,
    -0.017034,
    0.217274,
    0.197017,
    -0.263937,
    -0.668599,
    -0.776415,
    -0.015992,
    0.302073,
]
MULTIHEAD = [
    0.052818,
    -0.10944,
    -0.366638,
    -0.245255,
    0.435715,
    0.498959,
    0.393564,
    0.532482,
    0.111645,
    0.359587,
]


def test_softmax_attention_is_that_of_torch():
    q, k, v = wave(2, 3, 7, 8), wave(2, 3, 9, 8, phase=1), wave(2, 3, 9, 8, phase=2)
    mask = wave(2, 1, 7, 9, phase=3) > -0.5
    mask[..., 0] = True
    assert sample(attend(q, k, v)) == pytest.approx(TORCH, abs=1e-5)
    assert sample(attend(q, k, v, mask)) == pytest.approx(TORCH_MASKED, abs=1e-5)
    layer = SoftmaxAttention(32, 4)
    fill(layer)
    assert sample(layer(wave(2, 6, 32))[0]) == pytest.approx(MULTIHEAD, abs=1e-5)


# diffusers 0.42.1, with the weights of LinearAttention(64, 32, 1e-15) and GatedConvFFN(64, 2.0):
#   Attention(query_dim=64, heads=2, dim_head=32, bias=False, out_bias=True,
#             processor=SanaLinearAttnProcessor2_0())
#   GLUMBConv(64, 64, 2.0, norm_type=None, residual_connection=False) of sana_transformer
SANA_ATTENTION = [
    -0.261921,
    0.101521,
    0.131984,
    -0.273426,
    0.308344,
    -0.065436,
    0.330448,
    0.466495,
    0.023173,
    0.291414,
]
SANA_FFN = [
    -0.051529,
    0.070987,
    0.087353,
    0.043642,
    0.09942,
    0.087655,
    -0.011859,
    0.087068,
    -0.004491,
    0.105245,
]


def test_linear_attention_and_its_ffn_are_those_of_sana():
    attention, ffn, x = LinearAttention(64, 32, 1e-15), GatedConvFFN(64, 2.0), wave(2, 16, 64)
    fill(attention)
    fill(ffn)
    assert sample(attention(x)[0]) == pytest.approx(SANA_ATTENTION, abs=1e-5)
    assert sample(ffn(x, 4)) == pytest.approx(SANA_FFN, abs=1e-5)


# transformers 5.23: model = Wav2Vec2Model of the config below with `fill`; the audio in unit
# variance (processor), model.feature_extractor, F.interpolate(..., 20, mode="linear",
# align_corners=True), model.feature_projection, model.encoder; the output of each layer by a hook
WAV2VEC2 = [
    -1.551535,
    -0.665151,
    0.360887,
    1.395478,
    0.406758,
    0.234304,
    -1.162695,
    0.084847,
    -0.022006,
    1.000305,
]


def test_whole_utterances_are_heard_as_by_transformers():
    transformers = pytest.importorskip("transformers", reason="the extra `paper` is missing")
    shape = transformers.Wav2Vec2Config(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=24,
        conv_dim=(16,) * 7,
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(shape).eval()
    fill(model)
    config = Wav2Vec2StreamConfig(layers=2, width=16, heads=2, ffn=24, conv_width=16)
    pcm = 0.3 * wave(1, 640 * 20) * torch.sin(torch.arange(640 * 20) / 900)
    states = WholeWav2Vec2(Wav2Vec2Stream(config, model))(pcm)
    assert sample(states) == pytest.approx(WAV2VEC2, abs=1e-4)


# diffusers 0.42.1, x = wave(2, 3, 64, 64), the classes with the arguments that `random` passes:
#   z = kl.encode(x).latent_dist.mean * kl.config.scaling_factor; kl.decode(z / factor).sample
#   z = dc.encode(x).latent * dc.config.scaling_factor; dc.decode(z / factor).sample
AUTOENCODERS = {
    KLAutoencoder: ([0.057666, 0.093612, 0.002631, -0.034663, 0.087198, 0.06483, -0.090367,
                     -0.125013, -0.002764, 0.08606],
                    [-0.127004, 0.489021, -0.987673, -0.13161, -1.369179, -1.2441, -0.766494,
                     -0.870246]),
    DCAutoencoder: ([4.159158, 2.758117, -4.346267, 3.293436, 2.033644, -3.031291, 2.314952,
                     4.27907, 0.155551, 3.809894],
                    [1.346562, 0.089805, 0.104919, 0.386302, 0.505361, 0.038337, 1.638475,
                     -0.075001]),
}  # fmt: skip


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_latents_and_frames_are_those_of_diffusers(kind):
    pytest.importorskip("diffusers", reason="the extra `paper` is missing")
    if kind is KLAutoencoder:
        autoencoder = KLAutoencoder.random(64, widths=(8,) * 4, layers=1, norm_groups=4)
    else:
        one = (1,) * 6
        autoencoder = DCAutoencoder.random(
            64, widths=(32,) * 6, encoder_layers=one, decoder_layers=one
        )
    fill(autoencoder.inner)
    latents, frames = AUTOENCODERS[kind]
    encoded = autoencoder.encode(wave(2, 1, 3, 64, 64))
    assert sample(encoded) == pytest.approx(latents, abs=1e-3)
    shown = sample(autoencoder.decode(encoded))[:8]
    assert shown == pytest.approx([max(-1.0, min(1.0, value)) for value in frames], abs=1e-3)
