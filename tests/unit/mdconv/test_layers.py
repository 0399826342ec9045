"""MD-Conv against its loop reference, and the padded form against both."""

from __future__ import annotations

import pytest
import torch

from mdconv.layers import MDConv, mdconv_reference, split_channels

CASES = [
    # channels, kernel sizes, ratios, stride, height, width
    (2, (3, 5), (1, 1), 1, 7, 7),
    (7, (3, 5), (1, 1), 2, 9, 11),
    (8, (3, 5), (3, 1), 1, 5, 13),
    (9, (3, 5), (1, 3), 2, 14, 3),
    (5, (3, 5), (1, 0), 1, 1, 6),
    (5, (3, 5), (0, 1), 2, 6, 1),
    (11, (3, 5, 7), (1, 1, 1), 1, 10, 9),
    (12, (7, 3), (2, 1), 2, 15, 16),
]


@pytest.mark.parametrize(("channels", "kernel_sizes", "ratios", "stride", "height", "width"), CASES)
def test_forward_and_padded_weight_equal_the_loop_reference(
    channels: int, kernel_sizes: tuple[int, ...], ratios: tuple[int, ...], stride: int, height: int, width: int
) -> None:
    torch.manual_seed(channels)
    layer = MDConv(channels, kernel_sizes, ratios, stride).double()
    x = torch.randn(3, channels, height, width, dtype=torch.float64)
    expected = mdconv_reference(x, [conv.weight for conv in layer.convs], stride)

    torch.testing.assert_close(layer(x), expected)
    weight = layer.padded_weight()
    padded = torch.nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=channels)
    torch.testing.assert_close(padded, expected)


def test_gradients() -> None:
    torch.manual_seed(0)
    layer = MDConv(3, stride=2).double()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize(
    ("channels", "ratios", "splits"),
    [(8, (1, 1), (4, 4)), (7, (1, 1), (4, 3)), (5, (0, 1), (0, 5)), (10, (1, 1, 1), (4, 3, 3)), (8, (3, 1), (6, 2))],
)
def test_split_channels(channels: int, ratios: tuple[int, ...], splits: tuple[int, ...]) -> None:
    assert split_channels(channels, ratios) == splits


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"channels": 4, "kernel_sizes": (3, 4)}, "odd"),
        ({"channels": 4, "kernel_sizes": (3,)}, "one ratio a kernel size"),
        ({"channels": 4, "stride": 3}, "stride is 3"),
        ({"channels": 4, "ratios": (0, 0)}, "not all zero"),
        ({"channels": 4, "ratios": (-1, 2)}, "non-negative"),
        ({"channels": 2, "ratios": (9, 1)}, "would have none"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MDConv(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [5, 9, 13])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kernel_sizes", "ratios"),
    [((3, 5), ratios) for ratios in ((1, 0), (3, 1), (1, 1), (1, 3), (0, 1))]
    + [((3, 5, 7), (2, 1, 1)), ((3, 5, 7), (1, 0, 3))],
)
def test_odd_channels_every_ratio_and_stride(
    channels: int, stride: int, kernel_sizes: tuple[int, ...], ratios: tuple[int, ...]
) -> None:
    torch.manual_seed(channels)
    layer = MDConv(channels, kernel_sizes, ratios, stride).double()
    for height, width in ((1, 1), (6, 11), (9, 8)):
        x = torch.randn(2, channels, height, width, dtype=torch.float64)
        torch.testing.assert_close(layer(x), mdconv_reference(x, [conv.weight for conv in layer.convs], stride))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_sizes", "ratios"), [((3, 5), (1, 3)), ((3, 5, 7), (1, 1, 1)), ((5,), (1,))])
def test_gradients_of_input_and_weights(kernel_sizes: tuple[int, ...], ratios: tuple[int, ...], stride: int) -> None:
    torch.manual_seed(1)
    layer = MDConv(5, kernel_sizes, ratios, stride).double()
    names, weights = zip(*layer.named_parameters())
    x = torch.randn(1, 5, 4, 5, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, given)), (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))
