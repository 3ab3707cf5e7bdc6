"""The page to play with, served as a user serves it: what its server refuses, and the page in a real browser."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio is not installed: extra demo", allow_module_level=True)

import httpx

from browsing import Visit, chromium
from web_page import Served, save_model, served

# Requests that may wait; see exptilt.web.page, which is slow to import.
WAITING = 64
CLIENT = httpx.Client(timeout=300, limits=httpx.Limits(max_connections=None))
QUICK = [2, 0.05, 1.0, 0, 4, "none", 1.0]


@pytest.fixture(scope="module", autouse=True)
def _connections() -> Iterator[None]:
    yield
    CLIENT.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [save_model(root / "short", steps=2), save_model(root / "long", steps=40)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: list[Path]) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server"), *models) as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def call(page: Served, *values: Any) -> tuple[int, str, Any]:
    """Status of the request, how the run ends, and what it gives: what a client of the page's API sees."""
    address = f"{page.address}/gradio_api/call/sample"
    joined = CLIENT.post(address, json={"data": [*values]})
    if joined.status_code != 200:
        return joined.status_code, "refused", joined.json()["detail"]
    told = CLIENT.get(f"{address}/{joined.json()['event_id']}").text
    name, data = told.strip().split("\n\n")[-1].split("\n", 1)
    return 200, name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_run_by_the_api(server: Served, models: list[Path]) -> None:
    _, ended, (stage,) = call(server, str(models[0]), *QUICK)
    assert ended == "complete"
    assert "data-done" in stage


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (1, 10**9, "steps: 1000000000 is out of range; give a number from 0 to 500"),
        (1, None, "steps: None is no number; give a number from 0 to 500"),
        (5, 10**6, "n: 1000000 is out of range; give one of 4, 16, 36, 64"),
        (6, "<img src=x>", "reward: &#x27;&lt;img src=x&gt;&#x27; is not one of this model&#x27;s"),
        (0, "../../etc", "is not offered; choose one of the list"),
        (0, {"path": "/etc/passwd"}, "is not offered; choose one of the list"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_the_reason(
    server: Served, models: list[Path], place: int, value: Any, words: str
) -> None:
    values = [str(models[0]), *QUICK]
    values[place] = value
    _, ended, told = call(server, *values)
    assert ended == "error"
    assert words in told["error"]


def test_large_requests_and_uploads_are_refused(server: Served) -> None:
    address = f"{server.address}/gradio_api"
    assert CLIENT.post(f"{address}/call/sample", json={"data": ["x" * 100_000]}).status_code == 413
    streamed = CLIENT.post(f"{address}/call/sample", content=(b"x" * 10_000 for _ in range(20)))
    assert streamed.status_code == 413
    assert CLIENT.post(f"{address}/upload", files={"files": ("a.txt", b"more than a byte")}).status_code == 413


def test_files_of_the_machine_are_not_served(server: Served, models: list[Path]) -> None:
    for path in (Path(__file__), Path("/etc/passwd"), models[0] / "model_index.json"):
        assert CLIENT.get(f"{server.address}/gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs the kernel's list of sockets")
def test_it_listens_on_loopback_alone(server: Served) -> None:
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    # The second column is the local address in hexadecimal, the fourth the state: 0A listens.
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    here = f":{server.port:04X}"
    assert [place for place in listening if place.endswith(here)] == [f"0100007F{here}"]


def test_it_answers_to_its_own_name_alone(server: Served) -> None:
    """Else a page of another site could read it, by a name of its own that it lets point to 127.0.0.1."""
    for host, status in ((f"localhost:{server.port}", 200), ("127.0.0.1", 200), ("attacker.example", 400)):
        assert CLIENT.get(server.address, headers={"host": host}).status_code == status


def test_a_page_of_another_site_cannot_set_chains_going(server: Served, models: list[Path]) -> None:
    address, values = f"{server.address}/gradio_api/call/sample", {"data": [str(models[0]), *QUICK]}
    for origin, status in (("http://attacker.example", 403), ("null", 403), (server.address, 200)):
        assert CLIENT.post(address, json=values, headers={"origin": origin}).status_code == status


def test_a_hundred_clients_at_once_are_served_or_refused(server: Served, models: list[Path]) -> None:
    """More than may wait: those are told so, the others get their pictures, and so does the next one."""
    with ThreadPoolExecutor(100) as crowd:
        seeds = range(100)
        answers = list(crowd.map(lambda seed: call(server, str(models[0]), 0, *QUICK[1:3], seed, *QUICK[4:]), seeds))
    complete = [stage for _, ended, (stage, *_) in answers if ended == "complete"]
    refused = [(status, told) for status, ended, told in answers if ended != "complete"]
    assert len(complete) >= WAITING
    assert all("data-done" in stage for stage in complete)
    assert len(set(complete)) == len(complete), "each client has the samples of its own seed"
    assert all(status == 503 and "Queue is full" in told for status, told in refused), refused
    assert call(server, str(models[0]), *QUICK)[1] == "complete"


class Player(Visit):
    """Somebody who plays with the page."""

    def __init__(self, browser: Any, address: str, **window: Any) -> None:
        super().__init__(browser, **window)
        self.page.set_default_timeout(60_000)
        self.page.goto(address)
        self.wait()

    def wait(self) -> None:
        """Until a run is done that was not there before."""
        self.page.wait_for_selector(".stage[data-done]:not([data-seen])")
        self.page.evaluate("document.querySelector('.stage').dataset.seen = ''")
        # As long as somebody needs to move on: gradio may lose what it is sent while it closes the last run's stream.
        self.page.wait_for_timeout(250)

    def picture(self) -> str:
        """The picture after the chain that is shown, of which there is one."""
        shown = self.page.evaluate("[...document.querySelectorAll('.frames img:not([hidden])')].map((i) => i.src)")
        assert len(shown) == 1
        return shown[0]

    def step(self) -> str:
        """The step that is shown."""
        return self.page.locator(".stage output").inner_text()

    def density(self) -> str:
        """What stands above the picture after the chain."""
        return self.page.locator(".stage figcaption").nth(1).inner_text()

    def show_frame(self, index: int) -> None:
        """Move the slider of the chain's steps."""
        self.page.locator(".stage input.frame").fill(str(index))

    def require_fit(self, density: int) -> None:
        """Nothing is wider than the window, and a pixel of an image is a square of whole pixels of the screen."""
        assert self.overflow() == 0
        images = self.page.evaluate(
            """[...document.querySelectorAll('.stage img:not([hidden])')].map((e) => {
                const place = e.getBoundingClientRect();
                return [place.left, place.right, place.width / e.naturalWidth, getComputedStyle(e).imageRendering];
            })"""
        )
        assert len(images) == 2
        for left, right, scale, rendering in images:
            assert 0 <= left < right <= self.page.viewport_size["width"]
            assert scale * density == pytest.approx(max(1, round(scale * density)), abs=0.02)
            assert rendering == "pixelated"

    def brightness(self) -> float:
        """Mean of the page's background, in [0, 255]."""
        colour = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(value) for value in re.findall(r"[0-9]+", colour)[:3]) / 3


@pytest.mark.browser
def test_the_page_from_the_choice_to_the_files(browser: Any, server: Served, models: list[Path]) -> None:
    player = Player(browser, server.address, color_scheme="light", reduced_motion="reduce")
    page = player.page
    assert player.step() == "step 2 of 2"
    assert player.brightness() > 200
    player.require_fit(density=1)

    page.get_by_label("tilted model").click()
    page.get_by_role("option", name=str(models[1])).click()
    player.wait()
    assert page.get_by_label("number input for steps").input_value() == "40"
    assert player.step() == "step 40 of 40"
    assert "After 40 steps" in page.locator(".diagnosis").inner_text()
    first = player.picture()
    base = page.locator(".stage img").first.get_attribute("src")
    assert first != base
    player.show_frame(0)
    assert player.step() == "step 0 of 40"
    assert player.picture() == base, "the chain starts at the base sample"

    page.get_by_label("range slider for tilt strength").focus()
    page.keyboard.press("ArrowRight")
    player.wait()
    assert player.density() == "after: z ~ p(z)·exp(−1.05·E(z))/Z"

    track = page.get_by_label("range slider for seed").bounding_box()
    page.mouse.move(track["x"] + 2, track["y"] + track["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"] / 2, track["y"] + track["height"] / 2, steps=3)
    page.mouse.up()
    player.wait()
    seed = int(page.get_by_label("number input for seed").input_value())
    assert 4000 < seed < 6000
    assert player.picture() != first

    page.get_by_label("reward r").click()
    page.get_by_role("option", name="brightness").click()
    player.wait()
    assert player.density() == "after: z ~ p(z)·exp(−1.05·E(z) + brightness(x))/Z"
    assert "mean brightness(x)" in page.locator(".facts").first.inner_text()

    with page.expect_download() as download:
        page.get_by_text("Download .npz").click()
    held = np.load(download.value.path())
    assert held["images"].shape == held["base"].shape == (16, 32, 32, 1)
    chain = {"steps": 40, "step_size": 0.05, "strength": 1.05, "seed": seed}
    settings = {"model": str(models[1]), **chain, "n": 16, "reward": "brightness", "weight": 1.0}
    assert json.loads(str(held["settings"])) == settings
    with page.expect_download() as download:
        page.get_by_text("Download PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")

    before = player.picture()
    box = page.get_by_label("number input for tilt strength")
    box.fill("9")
    box.press("Enter")
    page.get_by_text("strength: 9 is out of range; give a number from 0 to 8").wait_for()
    assert player.picture() == before, "a fault leaves the last picture"

    assert player.complaints == []
    assert player.hosts == {server.address.removeprefix("http://")}
    player.close()


@pytest.mark.browser
def test_the_page_on_a_phone_in_the_dark(browser: Any, server: Served) -> None:
    player = Player(browser, server.address, width=390, height=844, color_scheme="dark", device_scale_factor=3)
    assert player.brightness() < 60
    player.require_fit(density=3)
    # It is played by itself, from the prior on, and again when asked.
    at_end = "document.querySelector('.stage output').textContent === 'step 2 of 2'"
    player.page.wait_for_function(at_end)
    player.show_frame(0)
    assert player.step() == "step 0 of 2"
    player.page.get_by_role("button", name="Play").click()
    player.page.wait_for_function(at_end)
    # While it is played, the next run may put fewer pictures there.
    player.page.get_by_role("button", name="Play").click()
    later = "document.querySelectorAll('.frames img:not(:first-child)')"
    player.page.evaluate(f"{later}.forEach((image) => image.remove())")
    player.page.wait_for_timeout(2000)
    assert player.complaints == []
    player.close()


def test_it_has_said_one_line_and_asked_nobody(server: Served, models: list[Path]) -> None:
    assert call(server, str(models[0]), *QUICK)[1] == "complete"
    assert server.log.read_text() == f"the page is {server.address}/ (Ctrl-C stops it)\n"
    contacts = set(server.contacts.read_text().split())
    assert contacts, "the record is there"
    assert all(ipaddress.ip_address(host.replace("localhost", "127.0.0.1")).is_loopback for host in contacts), contacts
