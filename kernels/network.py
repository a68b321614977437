"""What a network is: a frozen description that the reference, every kernel and the trainer read.

A network is a row of layers. One layer is

    product and bias → conditioning (× or + a vector) → layer norm → activation → residual

and a pre-norm block is the second kind, `x + W₂ act(W₁ LN(x) + b₁) + b₂`. The conditioning vector is one row for a whole
launch or one per row of the input. It comes from a table (an embedding of the noise level) or from a small network of
Fourier features of a time; the latter is joined to the input, which is the same as adding a vector in the first layer.

Nothing here computes: `reference.py` does, plainly, and the kernels do, fast.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

Activation = Literal["identity", "relu", "elu", "silu", "gelu", "mish", "tanh"]
Conditioning = Literal["none", "multiply", "add"]
Shapes = dict[str, tuple[int, ...]]

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Layer:
    """`y = act(norm(c ⊙ (W x + b)))`, with `+ c` for additive conditioning and `x + …` with a residual.

    Weights: `weight [width, inputs]`, `bias [width]`, and `norm.weight [width]`, `norm.bias [width]` with a norm.
    """

    width: int
    activation: Activation = "identity"
    norm: bool = False
    condition: Conditioning = "none"
    residual: bool = False

    def __post_init__(self) -> None:
        _check_width("Layer.width", self.width)
        _check_choice("Layer.activation", self.activation, get_args(Activation))
        _check_choice("Layer.condition", self.condition, get_args(Conditioning))


@dataclass(frozen=True)
class Block:
    """Pre-norm residual block, `y = out(x + W₂ act(W₁ LN(x) + b₁) + b₂)`; its width is that of its input.

    Weights: `norm.weight`, `norm.bias`, `up.weight [hidden, width]`, `up.bias`, `down.weight [width, hidden]`, `down.bias`.
    """

    hidden: int
    activation: Activation = "mish"
    out: Activation = "identity"

    def __post_init__(self) -> None:
        _check_width("Block.hidden", self.hidden)
        _check_choice("Block.activation", self.activation, get_args(Activation))
        _check_choice("Block.out", self.out, get_args(Activation))


@dataclass(frozen=True)
class TimeEmbedding:
    """Fourier features of a scalar time, then Linear, activation, Linear; joined to the network's input as its last columns.

        φ(t) = (sin 2πωt, cos 2πωt),   c = W₂ act(W₁ φ(t) + b₁) + b₂

    `learned` says whether training moves the frequencies ω; `order` says which half comes first.
    Weights: `time.frequencies`, `time.hidden.weight|bias`, `time.out.weight|bias`.
    """

    frequencies: int = 32
    hidden: int = 128
    width: int = 128
    activation: Activation = "mish"
    learned: bool = False
    order: Literal["sin_cos", "cos_sin"] = "sin_cos"

    def __post_init__(self) -> None:
        for name in ("frequencies", "hidden", "width"):
            _check_width(f"TimeEmbedding.{name}", getattr(self, name))
        _check_choice("TimeEmbedding.activation", self.activation, get_args(Activation))
        _check_choice("TimeEmbedding.order", self.order, ("sin_cos", "cos_sin"))


@dataclass(frozen=True)
class NetworkSpec:
    """A whole network: its number of inputs, its layers and where its conditioning comes from.

    `levels` > 0 gives a table `embedding [levels, width]` whose row conditions every layer that has `condition` set
    (all of one width). `time` gives an embedding that is joined to the input. A network has one of the two, or none.
    """

    inputs: int
    layers: tuple[Layer | Block, ...]
    levels: int = 0
    time: TimeEmbedding | None = None

    def __post_init__(self) -> None:
        _check_width("NetworkSpec.inputs", self.inputs)
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("NetworkSpec.layers is empty; give at least one Layer")
        conditioned = {layer.width for layer in self.layers if isinstance(layer, Layer) and layer.condition != "none"}
        if len(conditioned) > 1:
            raise ValueError(
                f"NetworkSpec.layers: conditioned layers have widths {sorted(conditioned)}, but one vector conditions them "
                "all; give them one width"
            )
        if bool(conditioned) and self.time is not None:
            raise ValueError("NetworkSpec: conditioned layers and a time embedding are both given; use one of them")
        if self.levels and not conditioned:
            raise ValueError(f"NetworkSpec.levels={self.levels}, but no layer is conditioned; set Layer.condition")
        width = self.joined_inputs
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Layer):
                if layer.residual and index == 0 and self.time:
                    raise ValueError("NetworkSpec.layers[0] has a residual over an input joined with time; drop it")
                if layer.residual and layer.width != width:
                    raise ValueError(
                        f"NetworkSpec.layers[{index}] has a residual from width {width} to {layer.width}; "
                        "make the widths equal or drop the residual"
                    )
                width = layer.width

    @property
    def joined_inputs(self) -> int:
        """Columns of the first product: the inputs and, behind them, the time embedding."""
        return self.inputs + (self.time.width if self.time else 0)

    @property
    def outputs(self) -> int:
        return self.widths[-1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width after each layer."""
        width, out = self.joined_inputs, []
        for layer in self.layers:
            width = layer.width if isinstance(layer, Layer) else width
            out.append(width)
        return tuple(out)

    @property
    def condition_width(self) -> int:
        """Width of the conditioning vector; 0 where the network has none."""
        if self.time:
            return self.time.width
        return next((n.width for n in self.layers if isinstance(n, Layer) and n.condition != "none"), 0)

    def weight_shapes(self) -> Shapes:
        """Every weight's name and shape, in a fixed order."""
        shapes: Shapes = {}
        if self.levels:
            shapes["embedding"] = (self.levels, self.condition_width)
        if self.time:
            t = self.time
            shapes["time.frequencies"] = (t.frequencies,)
            shapes |= _linear("time.hidden", 2 * t.frequencies, t.hidden) | _linear("time.out", t.hidden, t.width)
        width = self.joined_inputs
        for index, layer in enumerate(self.layers):
            name = f"layers.{index}"
            if isinstance(layer, Block):
                shapes |= _norm(name, width)
                shapes |= _linear(f"{name}.up", width, layer.hidden) | _linear(f"{name}.down", layer.hidden, width)
                continue
            shapes |= _linear(name, width, layer.width)
            if layer.norm:
                shapes |= _norm(name, layer.width)
            width = layer.width
        return shapes

    def flops_per_row(self) -> int:
        """Multiply-adds ×2 of one row through the products, the F of the cost model (5·T·F a planning iteration)."""
        return sum(2 * s[0] * s[1] for n, s in self.weight_shapes().items() if len(s) == 2 and n.startswith("layers."))

    def saved_per_row(self) -> int:
        """Numbers that one row keeps for the input-gradient: see `reference.network_forward_ref`."""
        count, width = 0, self.joined_inputs
        for layer in self.layers:
            if isinstance(layer, Block):
                count += width + 2 + (layer.hidden if layer.activation != "identity" else 0)
                count += width if layer.out != "identity" else 0
                continue
            count += (layer.width + 2 if layer.norm else 0) + (layer.width if layer.activation != "identity" else 0)
            width = layer.width
        return count

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        out = dataclasses.asdict(self)
        for data, layer in zip(out["layers"], self.layers, strict=True):
            data["kind"] = "block" if isinstance(layer, Block) else "layer"
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NetworkSpec:
        layers = []
        for item in data["layers"]:
            fields = {k: v for k, v in item.items() if k != "kind"}
            layers.append(Block(**fields) if item["kind"] == "block" else Layer(**fields))
        time = TimeEmbedding(**data["time"]) if data.get("time") else None
        return cls(data["inputs"], tuple(layers), data.get("levels", 0), time)


def mlp(
    inputs: int,
    outputs: int,
    *,
    width: int = 256,
    hidden_layers: int = 4,
    activation: Activation = "elu",
    norm: bool = False,
    levels: int = 0,
    head: Activation = "identity",
) -> NetworkSpec:
    """A plain perceptron; with `norm` and `levels`, SGP's networks.

    `norm` normalises every hidden layer but the first (SGP's dynamics and cost: `hidden_layers: n` means n−1 normalised
    layers). `levels` > 0 multiplies the same layers by the row of a table (SGP's score). `head` is the last activation.
    """
    condition: Conditioning = "multiply" if levels else "none"
    hidden = [Layer(width, activation)]
    hidden += [Layer(width, activation, norm=norm, condition=condition) for _ in range(hidden_layers - 1)]
    return NetworkSpec(inputs, (*hidden, Layer(outputs, head)), levels=levels)


def srpo_behavior(inputs: int, outputs: int, *, width: int = 256, blocks: int = 3) -> NetworkSpec:
    """The behaviour model of SRPO (Chen et al. 2023, arXiv 2310.07297): pre-norm blocks over (a, s, time)."""
    body = [Block(4 * width)] * (blocks - 1) + [Block(4 * width, out="mish")]
    return NetworkSpec(inputs, (Layer(width), *body, Layer(outputs)), time=TimeEmbedding())


def qsm_actor(inputs: int, outputs: int, *, width: int = 512) -> NetworkSpec:
    """The actor of Q-score matching (Psenka et al. 2023, arXiv 2312.11752): learned Fourier features, two Mish layers."""
    time = TimeEmbedding(learned=True, order="cos_sin")
    return NetworkSpec(inputs, (Layer(width, "mish"), Layer(width, "mish"), Layer(outputs)), time=time)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.norm.weight": (width,), f"{name}.norm.bias": (width,)}


def _check_width(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
