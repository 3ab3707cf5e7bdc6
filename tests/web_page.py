"""The page to play with in a process of its own, as a user starts it, and models for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import exptilt
from exptilt.config import SamplerConfig

# Runs in the process of the page, before anything else: writes down what it connects to and which names it looks up.
_RECORDER = """
import sys
def note(event, values):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = values[0] if event == "socket.getaddrinfo" else values[1]
        with open({file!r}, "a") as file:
            print(host[0] if isinstance(host, tuple) else host, file=file)
sys.addaudithook(note)
"""


def save_model(folder: Path, *, steps: int) -> Path:
    """A small tilted model of digits whose weights are fresh."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = exptilt.VAE(channels=1, latent_size=16, width=8, likelihood="bernoulli")
        energy = exptilt.MLPEnergy(16, 8)
    chain = SamplerConfig(kernel="mala", steps=steps, step_size=0.05)
    exptilt.TiltedGenerator(vae, latent_energy=energy, sampler=chain).save_pretrained(folder)
    (folder / "result.json").write_text(json.dumps({"protocol": {"data": "digits"}}))
    return folder


@dataclass
class Served:
    """A page that is being served.

    Attributes:
        address: Where, without a slash at its end.
        process: Its process.
        log: File with what it said on both channels.
        contacts: File with the hosts that it connected to or looked up.
    """

    address: str
    process: subprocess.Popen[bytes]
    log: Path
    contacts: Path

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.address.rsplit(":", 1)[1])


@contextlib.contextmanager
def served(scratch: Path, *models: Path) -> Iterator[Served]:
    """``exptilt demo --web MODELS`` until the end of the block."""
    log, contacts = scratch / "log.txt", scratch / "contacts.txt"
    (scratch / "sitecustomize.py").write_text(_RECORDER.format(file=str(contacts)))
    # Before what the caller has: the process must import the same exptilt.
    places = os.pathsep.join(filter(None, (str(scratch), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "exptilt.cli", "demo", *map(str, models), "--web", "--quiet"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, env=variables, stdout=said, stderr=said, cwd=scratch, preexec_fn=_heed_interrupts
        )
        try:
            yield Served(_address(process, log), process, log, contacts)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                process.kill()
    assert process.returncode == 0, log.read_text()


def _heed_interrupts() -> None:
    # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(900):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            break
        if " (Ctrl-C" in (told := log.read_text()):
            return told.split("the page is ")[1].split("/ (Ctrl-C")[0]
    raise AssertionError(f"no page: {log.read_text()}")
