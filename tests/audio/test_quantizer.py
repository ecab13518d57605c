import torch

from mmspeech.audio.quantizer import Codebook, ResidualQuantizer, SplitResidualQuantizer


def test_a_vector_of_the_codebook_is_its_own_code():
    torch.manual_seed(0)
    codebook = Codebook(size=32, dim=8)
    ids = torch.randint(0, 32, (3, 5))
    assert torch.equal(codebook.encode(codebook.decode(ids)), ids)


def test_nearest_is_euclidean():
    torch.manual_seed(0)
    codebook, x = Codebook(size=64, dim=4), torch.randn(200, 4)
    assert torch.equal(codebook.encode(x), torch.cdist(x, codebook.vectors).argmin(-1))


def test_running_means_follow_the_data_and_unused_entries_restart():
    torch.manual_seed(0)
    centres = torch.randn(8, 4) * 5
    codebook = Codebook(size=32, dim=4, decay=0.8).train()
    for _ in range(300):
        x = centres[torch.randint(0, 8, (256,))] + 0.01 * torch.randn(256, 4)
        codebook.update(x, codebook.encode(x))
    distances = torch.cdist(centres, codebook.vectors).min(dim=1).values
    assert distances.max() < 0.1


def test_gradients_go_straight_through():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(num_codebooks=3, dim=6, codebook_dim=4, codebook_size=16).eval()
    x = torch.randn(2, 6, 5, requires_grad=True)
    quantizer(x).quantized.sum().backward()
    weights = quantizer.output_proj.weight[..., 0] @ quantizer.input_proj.weight[..., 0]
    assert torch.allclose(x.grad, weights.sum(0)[None, :, None].expand_as(x), atol=1e-6)


def test_training_codes_equal_encoding_and_decoding_equals_the_quantized_signal():
    torch.manual_seed(0)
    quantizer = SplitResidualQuantizer(num_codebooks=4, dim=6, codebook_dim=4, codebook_size=16).eval()
    x = torch.randn(2, 6, 5)
    first, rest = quantizer(x)
    codes = quantizer.encode(x)
    assert torch.equal(codes, torch.cat([first.codes, rest.codes], dim=1))
    assert torch.allclose(quantizer.decode(codes), first.quantized + rest.quantized, atol=1e-5)
    assert torch.equal(quantizer.encode(x, num_codebooks=2), codes[:, :2])


def test_eval_mode_moves_no_codebook():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(num_codebooks=2, dim=6, codebook_dim=4, codebook_size=16).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 6, 5))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
