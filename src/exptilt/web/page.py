"""The page: a model, its controls, and what one run of the chains shows."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from exptilt.config import KERNEL_SETTINGS
from exptilt.errors import InputError, RunError
from exptilt.web.catalogue import Catalogue
from exptilt.web.settings import LIMITS, NO_REWARD, SIZES, Settings
from exptilt.web.stage import stages

# Runs side by side, and requests that wait; those that come then are refused.
RUNNING, WAITING = 2, 64
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
# Until the page has loaded and asked for the model's own.
_FIRST = {"steps": 100, "step_size": 0.01, "strength": 1, "seed": 0, "weight": 1}
_INTRO = """# exptilt
Samples of a frozen generator before and after tilting. Each chain starts at the latent of a sample in the
first picture, and ends at that of the sample in the same place in the second."""


def make_page(catalogue: Catalogue) -> gr.Blocks:
    """The page of the models in a catalogue, which has one at least."""
    with gr.Blocks(title="exptilt", analytics_enabled=False) as page:
        gr.Markdown(_INTRO)
        name = gr.Dropdown(catalogue.names, value=catalogue.names[0], label="tilted model", filterable=False)
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                stage = gr.HTML(min_height=200, elem_id="stage")
            with gr.Column(scale=2, min_width=260, elem_id="controls"):
                chain = {
                    "steps": _slider("steps", "steps of the chain"),
                    "step_size": _slider("step_size", "step size ε"),
                    "strength": _slider("strength", "tilt strength λ"),
                    "seed": _slider("seed", "seed"),
                    "n": gr.Radio(SIZES, value=16, label="images"),
                    "reward": gr.Dropdown([NO_REWARD], value=NO_REWARD, label="reward r", filterable=False),
                    "weight": _slider("weight", "reward weight w"),
                }
                again = gr.Button("Sample", variant="primary", elem_id="sample")

        def fit(name: str) -> list[Any]:
            with _told():
                return _fitted(catalogue, name)

        def run(name: str, *values: Any) -> Iterator[str]:
            with _told():
                settings = Settings(**dict(zip(chain, values, strict=True)))
                yield from stages(catalogue[name], name, settings)

        # What a client sends is checked by Settings, whose messages say what would be right.
        fitting: dict[str, Any] = {"fn": fit, "inputs": name, "outputs": [*chain.values()], "preprocess": False}
        running: dict[str, Any] = {
            "fn": run,
            "inputs": [name, *chain.values()],
            "outputs": stage,
            "preprocess": False,
            "concurrency_id": "chains",
            "concurrency_limit": RUNNING,
            "show_progress": "hidden",
        }
        sliders = [control for control in chain.values() if isinstance(control, gr.Slider)]
        moved = [*(slider.release for slider in sliders), chain["n"].input, chain["reward"].input, again.click]
        runs = [chosen(**fitting, **_PRIVATE).success(**running, **_PRIVATE) for chosen in (page.load, name.input)]
        for finished in (*runs, gr.on(moved, **running, trigger_mode="always_last", api_name="sample")):
            finished.success(fn=None, js="() => window.exptiltPlay()", **_PRIVATE)
    return page.queue(max_size=WAITING, default_concurrency_limit=RUNNING)


def _fitted(catalogue: Catalogue, name: str) -> list[Any]:
    """The controls as the model has them: its own chain, its rewards."""
    model = catalogue[name]
    sampler, images = model.tilted.sampler, len(model.tilted.data_shape) == 3
    own = {"steps": sampler.steps, "step_size": float(f"{sampler.step_size:.4g}"), "strength": model.tilted.strength}
    values = {key: min(max(value, LIMITS[key].low), LIMITS[key].high) for key, value in own.items()}
    return [
        gr.Slider(value=values["steps"]),
        gr.Slider(value=values["step_size"], interactive="step_size" in KERNEL_SETTINGS[sampler.kernel]),
        gr.Slider(value=values["strength"]),
        gr.skip(),
        gr.Radio(visible=images),
        gr.Dropdown([NO_REWARD, *model.rewards], value=NO_REWARD),
        gr.skip(),
    ]


def _slider(name: str, label: str) -> gr.Slider:
    limit = LIMITS[name]
    # No button that sets it back: that would not be to the model's own value.
    return gr.Slider(limit.low, limit.high, value=_FIRST[name], step=limit.step, label=label, buttons=[])


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """A wrong value or a failed run as a message on the page, without a traceback on the server."""
    try:
        yield
    except (InputError, RunError) as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from None
