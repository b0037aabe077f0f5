"""The pictures of the documentation, drawn from the planner's numbers."""

import random
import tempfile
from pathlib import Path

import planner
from calibration.compare import compare
from calibration.truth.error_picture import draw
from calibration.truth.measured_runs import read_runs
from planner.data.lengths import DataLengths
from planner.picture.curve_picture import Curve, Point, binary_step, curve_picture
from planner.picture.memory_picture import memory_picture
from planner.picture.shapes import Picture
from planner.picture.svg import svg
from planner.predict.prediction import Prediction
from planner.units import format_bytes

RUNS = Path(__file__).parents[1] / "calibration" / "truth" / "runs.csv"
CARD = "a100-80gb"

LENGTHS = (512, 1024, 2048, 3072, 4096, 6144, 8192)
ROWS_AT_ONCE = (1, 2, 4, 8, 16, 32, 64)
NUM_ROWS = 10_000


def drawings() -> dict[str, str]:
    """Every picture as SVG, by its name."""
    pictures = {
        **{f"seven-{method}": _memory(_estimate("7b", method)) for method in ("full", "lora", "qlora")},
        **{f"phi-{method}": _memory(_estimate("phi-2", method, 8192, 4)) for method in ("lora", "qlora")},
        "qlora-over-lora": _over_lengths({method: ("phi-2", method, 4, "fused") for method in ("lora", "qlora")}),
        "logits": _over_lengths(
            {
                "Llama 3.1 8B, all logits": ("llama3.1-8b", "qlora", 4, "full"),
                "Llama 3.1 8B, fused": ("llama3.1-8b", "qlora", 4, "fused"),
                "Llama 2 7B, all logits": ("llama2-7b", "qlora", 4, "full"),
                "Llama 2 7B, fused": ("llama2-7b", "qlora", 4, "fused"),
            }
        ),
        "padding": _padding(),
    }
    return {name: svg(picture) for name, picture in pictures.items()}


def _estimate(model: str, method: str, length: int = 2048, rows: int = 1, loss: str = "fused") -> Prediction:
    knobs = {"per_device_train_batch_size": rows, "loss": loss}
    return planner.estimate(model, CARD, method=method, max_length=length, knobs=knobs)  # type: ignore[arg-type]


def _memory(prediction: Prediction) -> Picture:
    return memory_picture(prediction.estimate, prediction.usable_bytes)


def _over_lengths(cases: dict[str, tuple[str, str, int, str]]) -> Picture:
    """Memory of the process over the length of rows, a curve for each case."""
    inks = ("weights", "work", "optimizer", "stored")
    curves = []
    for ink, (name, (model, method, rows, loss)) in zip(inks, cases.items(), strict=False):
        sizes = [_estimate(model, method, length, rows, loss).estimate.process_bytes for length in LENGTHS]
        points: list[Point] = list(zip(LENGTHS, sizes, strict=True))
        curves.append(Curve(name, points, ink))
    return curve_picture(curves, "tokens a row", lambda y: format_bytes(round(y)), y_step=binary_step, height=220)


def _padding() -> Picture:
    """The share of a batch that is padding, over its rows, and what is left of it when rows are packed."""
    draw_length = random.Random(0).lognormvariate  # noqa: S311  # made-up rows
    lengths = DataLengths.of(max(8, min(4096, round(draw_length(5.3, 0.8)))) for _ in range(NUM_ROWS))
    longest = lengths.longest
    real = lengths.mean(longest)
    padded = [(rows, 1 - real / lengths.expected_longest(rows, longest)) for rows in ROWS_AT_ONCE]
    left = 1 - lengths.num_tokens(longest) / (lengths.num_packed(longest) * longest)
    curves = [
        Curve("padded to the longest of a batch", padded, "work"),
        Curve(f"packed to {longest:,} tokens", [(rows, left) for rows in ROWS_AT_ONCE], "weights"),
    ]
    return curve_picture(curves, "rows at once", lambda y: f"{y:.0%}", height=180)


def errors_picture() -> str:
    """Predicted against measured memory of the published runs, as SVG."""
    compared, _ = compare(read_runs(RUNS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "errors.svg"
        draw(compared, path)
        return path.read_text(encoding="utf-8")
