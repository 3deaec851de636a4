"""What training reads at every step is what the model's own parts compute."""

from __future__ import annotations

import pytest
import torch

from atelier.training.data.latent_cache import Example, encode_pictures, encode_text, tokenize

WHOLE = (32, 32, 0, 0, 32, 32)
CAPTIONS = ["a rex fox", "", "an emoji of a red apple on a blue background " * 5]


@pytest.fixture
def pictures() -> list[torch.Tensor]:
    return [torch.rand(3, *size) * 2 - 1 for size in ((32, 32), (48, 24), (32, 32))]


def test_mean_and_deviation_are_the_posterior_s_in_the_unet_s_scale(model, pictures):
    examples = encode_pictures(model, pictures, CAPTIONS, [WHOLE] * 3)
    for picture, example in zip(pictures, examples, strict=True):
        with torch.no_grad():
            posterior = model.vae.encode(picture[None]).latent_dist
        assert example.mean.shape == (4, picture.shape[1] // 4, picture.shape[2] // 4)
        torch.testing.assert_close(example.mean, posterior.mean[0] * 0.7)
        torch.testing.assert_close(example.std, (0.5 * posterior.logvar[0]).exp() * 0.7)


def test_samples_follow_the_posterior():
    example = Example(torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5, 2.0]]]), torch.zeros(1))
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([example.sample(generator) for _ in range(4000)])
    torch.testing.assert_close(samples.mean(0), example.mean, rtol=0, atol=0.12)
    torch.testing.assert_close(samples.std(0), example.std, rtol=0.05, atol=0)


def test_a_sample_is_decided_by_its_generator_alone(model, pictures):
    example = encode_pictures(model, pictures[:1], CAPTIONS[:1], [WHOLE])[0]
    torch.manual_seed(1)
    first = example.sample(torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    again, other = (example.sample(torch.Generator().manual_seed(seed)) for seed in (5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_example_does_not_depend_on_its_company(model, pictures):
    together = encode_pictures(model, pictures, CAPTIONS, [WHOLE] * 3)
    alone = encode_pictures(model, pictures[2:], CAPTIONS[2:], [WHOLE])[0]
    for name in ("mean", "std", "tokens"):
        assert torch.equal(getattr(together[2], name), getattr(alone, name))


def test_examples_can_be_trained_on(model, pictures):
    """Tensors that were made in inference mode would be refused by autograd."""
    example = encode_pictures(model, pictures[:1], CAPTIONS[:1], [WHOLE])[0]
    weight = torch.ones(1, requires_grad=True)
    (weight * example.sample(torch.Generator())).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, example.sample(torch.Generator()).sum()[None])


def test_captions_and_pictures_come_in_pairs(model, pictures):
    with pytest.raises(ValueError, match="shorter"):
        encode_pictures(model, pictures, CAPTIONS[:2], [WHOLE] * 2)


def test_text_is_cut_and_encoded_as_the_pipeline_does_it(model):
    tokens = tokenize(model, CAPTIONS)
    assert tokens.shape == (3, 24)
    expected, _ = model.pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)
    with torch.no_grad():
        torch.testing.assert_close(encode_text(model, tokens).features, expected, rtol=0, atol=0)
    assert not torch.equal(expected[0], expected[1])


def test_the_tokens_of_an_example_are_those_of_its_caption(model, pictures):
    examples = encode_pictures(model, pictures, CAPTIONS, [WHOLE] * 3)
    for example, caption in zip(examples, CAPTIONS, strict=True):
        assert torch.equal(example.tokens, tokenize(model, [caption])[0])
