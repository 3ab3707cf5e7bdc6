"""Models on the Hub, by the real client against a stand-in for the server: pushed, loaded, pinned, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants

import exptilt
from exptilt import cli
from exptilt.config import SamplerConfig
from exptilt.energies import make_energy
from exptilt.errors import InputError, RunError
from exptilt.export import export
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.hub import MANAGED, locate
from exptilt.tilted import TiltedGenerator
from exptilt.vetting import LARGEST_JSON
from fake_hub import TOKEN, FakeHub, fake_hub

# What the client's own upload of large files does.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    with fake_hub(tmp_path / "hub", monkeypatch) as hub:
        yield hub


def small_vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(latent_size=4, width=4)


def small_tilted(generator: exptilt.Generator | None = None) -> TiltedGenerator:
    generator = generator or small_vae()
    energy = make_energy("mlp", generator.latent_shape, 8)
    return TiltedGenerator(generator, latent_energy=energy, sampler=SamplerConfig(steps=2))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """What was measured of the tilted generator."""
    test, train = (exptilt.load_dataset("digits", split) for split in ("test", "train"))
    return exptilt.evaluate(small_tilted(), test, n=140, seeds=(0,), train=train, progress=False, bootstrap=2)


def test_a_pushed_model_comes_back_as_it_was_with_a_card(hub: FakeHub, result: dict[str, Any]) -> None:
    tilted = small_tilted()
    address = tilted.push_to_hub("user/model", result=result, token=TOKEN)
    files = hub.files("user/model")
    assert address == f"{hub.url}/user/model/commit/{hub.repositories['user/model'].resolve('main')}"
    assert set(files) - {".gitattributes"} == {
        "README.md",
        "generator/config.json",
        "generator/model.safetensors",
        "latent_energy/config.json",
        "latent_energy/model.safetensors",
        "model_index.json",
        "result.json",
        "samples.png",
    }
    back = exptilt.load("user/model")
    assert isinstance(back, TiltedGenerator)
    assert torch.equal(back.sample(3, seed=5), tilted.sample(3, seed=5))
    assert back.sampler == tilted.sampler
    assert json.loads(files["result.json"]) == result
    card = files["README.md"].decode()
    assert f"`{result['protocol']['hash']}`" in card
    assert f"| feature_digest | `{result['protocol']['feature_digest']}` |" in card
    assert f"| tilted | {result['tilted']['fid']:.1f}" in card
    assert 'exptilt.load("user/model")' in card
    assert files["samples.png"].startswith(b"\x89PNG")
    data = ModelCard(card).data
    assert (data.license, data.library_name) == ("apache-2.0", "exptilt")
    assert data.eval_results[0].metric_type == "fid"
    assert data.eval_results[0].metric_value == pytest.approx(result["tilted"]["fid"], abs=1e-4)
    assert data.model_name == "model"


def test_class_methods_take_folders_and_ids_of_their_class_only(hub: FakeHub, tmp_path: Path) -> None:
    vae, tilted = small_vae(), small_tilted()
    vae.save_pretrained(tmp_path / "vae")
    vae.push_to_hub("user/vae", token=TOKEN)
    tilted.push_to_hub("user/tilted", token=TOKEN)
    for source in (tmp_path / "vae", "user/vae"):
        for kind in (VAE, exptilt.Generator):
            assert torch.equal(kind.from_pretrained(source).sample(2), vae.freeze().sample(2))
    assert isinstance(TiltedGenerator.from_pretrained("user/tilted"), TiltedGenerator)
    with pytest.raises(InputError, match=r"holds a VAE, and this is Glow\.from_pretrained"):
        exptilt.Glow.from_pretrained("user/vae")
    with pytest.raises(InputError, match="holds a TiltedGenerator, and this is Generator"):
        exptilt.Generator.from_pretrained("user/tilted")


def test_a_revision_pins_the_model(hub: FakeHub) -> None:
    first, second, branch = small_vae(1), small_vae(2), small_vae(3)
    commit = first.push_to_hub("user/vae", token=TOKEN).rsplit("/", 1)[1]
    second.push_to_hub("user/vae", token=TOKEN)
    branch.push_to_hub("user/vae", token=TOKEN, revision="wide")

    def weights(model: Any) -> torch.Tensor:
        return next(model.parameters())

    assert torch.equal(weights(exptilt.load("user/vae")), weights(second))
    assert torch.equal(weights(exptilt.load("user/vae", revision=commit)), weights(first))
    assert torch.equal(weights(exptilt.load(f"user/vae@{commit}")), weights(first))
    assert torch.equal(weights(exptilt.load("user/vae", revision="wide")), weights(branch))
    assert 'exptilt.load("user/vae", revision="wide")' in hub.files("user/vae", "wide")["README.md"].decode()
    with pytest.raises(InputError, match="user/vae, revision 'v9': does not exist; give a branch"):
        exptilt.load("user/vae", revision="v9")
    with pytest.raises(InputError, match="names another revision"):
        exptilt.load("user/vae@wide", revision=commit)


def test_a_local_folder_wins(hub: FakeHub, tmp_path: Path) -> None:
    small_vae(1).push_to_hub("user/vae", token=TOKEN)
    local = small_vae(2)
    local.save_pretrained(tmp_path / "user" / "vae")
    hub.requests.clear()
    assert torch.equal(exptilt.load("user/vae").sample(2), local.freeze().sample(2))
    assert hub.requests == []
    with pytest.raises(InputError, match="is a folder here, which has no revisions"):
        exptilt.load("user/vae", revision="main")


def test_a_path_that_is_no_id_does_not_reach_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    for path in ("nothing", "./none", "../up/none", tmp_path / "none", "a/b/c", "user/na me", "user/"):
        with pytest.raises(InputError, match="no such folder"):
            exptilt.load(path)
    assert hub.requests == []


def test_without_rights_there_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    small_vae().push_to_hub("user/secret", token=TOKEN, private=True)
    assert hub.repositories["user/secret"].private
    with pytest.raises(InputError, match="no model on the Hub; check the name, or give a token") as error:
        exptilt.load("user/secret")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no model on the Hub"):
        exptilt.load("user/nothing", token=TOKEN)
    assert isinstance(exptilt.load("user/secret", token=TOKEN), VAE)
    small_vae().save_pretrained(tmp_path / "vae")
    hub.add("user/gated", files_of(tmp_path / "vae"), gated=True)
    with pytest.raises(InputError, match="user/gated: is gated; ask for access") as error:
        exptilt.load("user/gated")
    assert "\n" not in str(error.value)


def test_without_the_hub_an_earlier_download_serves(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small_vae()
    vae.push_to_hub("user/vae", token=TOKEN)
    with pytest.raises(InputError, match="was not downloaded before; leave local_files_only out"):
        exptilt.load("user/vae", local_files_only=True)
    exptilt.load("user/vae")
    hub.requests.clear()
    assert torch.equal(exptilt.load("user/vae", local_files_only=True).sample(1), vae.freeze().sample(1))
    assert hub.requests == []
    hub.status = 503
    assert isinstance(exptilt.load("user/vae"), VAE)
    with pytest.raises(RunError, match="user/other: is no folder here, and the Hub cannot be read"):
        exptilt.load("user/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert isinstance(exptilt.load("user/vae"), VAE)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        exptilt.load("user/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    assert isinstance(exptilt.load("user/vae"), VAE)
    with pytest.raises(RunError, match="user/other: is no folder here, and the Hub cannot be read") as error:
        exptilt.load("user/other")
    assert "\n" not in str(error.value)


def test_without_the_hub_a_folder_that_was_mistyped_is_a_bad_input(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_vae().save_pretrained(tmp_path / "runs" / "vae")
    hub.stop()
    assert call("sample", "runs/typo", "--out", "y.png", "--quiet") == 2
    told = capsys.readouterr().err
    assert told.startswith("exptilt: runs/typo: no such folder in runs, nor can it be had from the Hub; give a folder")
    assert told.count("\n") == 1
    with pytest.raises(RunError):
        exptilt.load("user/none")


def test_only_what_a_model_consists_of_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    small_vae().save_pretrained(tmp_path / "vae")
    mine = files_of(tmp_path / "vae")
    hub.add(
        "user/vae", {**mine, "pickle.bin": b"x", "other.safetensors": b"x", "code.py": b"x", "a/config.json": b"{}"}
    )
    assert isinstance(exptilt.load("user/vae"), VAE)
    assert hub.downloaded() == {"config.json", "model.safetensors"}


def test_a_model_of_another_library_is_refused_before_its_weights_are_downloaded(hub: FakeHub) -> None:
    hub.add("user/other", {"config.json": b'{"architectures": ["Llama"]}', "model.safetensors": b"large"})
    with pytest.raises(InputError, match="class None is not known"):
        exptilt.load("user/other")
    assert hub.downloaded() == {"config.json"}
    index = {"class": "TiltedGenerator", "parts": ["../../generator"]}
    hub.add("user/escapes", {"model_index.json": json.dumps(index).encode()})
    with pytest.raises(InputError, match="are not known"):
        exptilt.load("user/escapes")
    hub.add("user/empty", {"README.md": b"nothing here"})
    with pytest.raises(InputError, match="is on the Hub, but no model of exptilt"):
        exptilt.load("user/empty")
    hub.requests.clear()
    hub.add("user/huge", {"config.json": b" " * (LARGEST_JSON + 1)})
    with pytest.raises(InputError, match=r"its config\.json has 1,048,577 bytes"):
        exptilt.load("user/huge")
    assert hub.downloaded() == set()


def test_a_linked_generator_is_uploaded_and_not_its_link(hub: FakeHub, tmp_path: Path) -> None:
    small_vae().save_pretrained(tmp_path / "vae")
    export(tmp_path / "vae", tmp_path / "published")
    small_tilted(exptilt.load(tmp_path / "published")).save_pretrained(tmp_path / "tilted")
    out = export(tmp_path / "tilted", tmp_path / "published-tilted", link_generator=tmp_path / "published")
    assert (out / "generator").is_symlink()
    exptilt.push_to_hub(out, "user/tilted", token=TOKEN)
    files = hub.files("user/tilted")
    assert files["generator/model.safetensors"] == (tmp_path / "published" / "model.safetensors").read_bytes()
    assert torch.equal(exptilt.load("user/tilted").sample(2), exptilt.load(out).sample(2))
    assert "weights in float16" in files["README.md"].decode()


def test_a_new_model_replaces_the_files_of_the_old_one_and_no_others(hub: FakeHub, result: dict[str, Any]) -> None:
    small_tilted().push_to_hub("user/model", result=result, token=TOKEN)
    hub.repositories["user/model"].commit("main", {**hub.files("user/model"), "LICENSE": b"mine"})
    commits = len(hub.repositories["user/model"].commits)
    small_vae().push_to_hub("user/model", token=TOKEN)
    assert len(hub.repositories["user/model"].commits) == commits + 1
    assert set(hub.files("user/model")) == {
        ".gitattributes",
        "LICENSE",
        "README.md",
        "config.json",
        "model.safetensors",
        "samples.png",
    }
    assert set(hub.files("user/model")) - {".gitattributes", "LICENSE"} <= MANAGED
    assert isinstance(exptilt.load("user/model"), VAE)


def test_what_cannot_be_pushed_is_refused_before_anything_is_written(
    hub: FakeHub, tmp_path: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tilted = small_tilted()
    for repo_id in ("user", "user/name@v1", "user/name/more", "../name"):
        with pytest.raises(InputError, match="is no id of the Hub"):
            tilted.push_to_hub(repo_id, token=TOKEN)
    with pytest.raises(InputError, match="is no id of the Hub"):
        tilted.push_to_hub("user/na--me", token=TOKEN)
    with pytest.raises(InputError, match="was not measured on this VAE"):
        small_vae().push_to_hub("user/vae", result=result, token=TOKEN)
    with pytest.raises(InputError, match="was measured with another strength"):
        tilted.push_to_hub("user/tilted", result={**result, "strength": 2.0}, token=TOKEN)
    with pytest.raises(InputError, match="is not what exptilt evaluate writes"):
        tilted.push_to_hub("user/tilted", result={"fid": 0}, token=TOKEN)
    with pytest.raises(InputError, match="no such folder"):
        exptilt.push_to_hub(tmp_path / "none", "user/none", token=TOKEN)
    wrapped = exptilt.wrap(torch.nn.Linear(2, 2), (2,))
    with pytest.raises(InputError, match="cannot be saved"):
        wrapped.push_to_hub("user/wrapped", token=TOKEN)
    assert hub.repositories == {}
    with pytest.raises(InputError, match=r"the Hub refuses \(401: Invalid username or password\.\); give a token"):
        tilted.push_to_hub("user/tilted")
    assert hub.repositories == {}
    small_vae().push_to_hub("user/public", token=TOKEN)
    before = hub.files("user/public")
    with pytest.raises(InputError, match="is public already"):
        tilted.push_to_hub("user/public", private=True, token=TOKEN)
    hub.refuse_commits = True
    with pytest.raises(InputError, match="the Hub refuses") as error:
        tilted.push_to_hub("user/public", token=TOKEN)
    assert "\n" not in str(error.value)
    assert hub.files("user/public") == before
    hub.stop()
    with pytest.raises(RunError, match="user/public: the Hub cannot be written"):
        tilted.push_to_hub("user/public", token=TOKEN)


def test_a_secret_behind_a_link_is_not_pushed(hub: FakeHub, tmp_path: Path) -> None:
    small_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "credentials.json").write_text('{"password": "hunter2"}')  # pragma: allowlist secret
    (tmp_path / "vae" / "run.json").symlink_to(tmp_path / "credentials.json")
    with pytest.raises(InputError, match="is a link that leaves the model's folder"):
        exptilt.push_to_hub(tmp_path / "vae", "user/vae", token=TOKEN)
    (tmp_path / "vae" / "run.json").unlink()
    (tmp_path / "vae" / "notes.txt").write_text("private")
    exptilt.push_to_hub(tmp_path / "vae", "user/vae", token=TOKEN)
    assert "notes.txt" not in hub.files("user/vae")


def test_points_and_wrapped_decoders_are_pushed_too(hub: FakeHub) -> None:
    ToyVAE(width=4).push_to_hub("user/points", token=TOKEN)
    card = hub.files("user/points")["README.md"].decode()
    assert "2,000 samples of seed 0" in card
    assert hub.files("user/points")["samples.png"].startswith(b"\x89PNG")
    wrapped = exptilt.wrap(torch.nn.Linear(2, 3), (2,))
    tilted = TiltedGenerator(wrapped, make_energy("mlp", (3,), 4), sampler=SamplerConfig(steps=1))
    tilted.push_to_hub("user/wrapped", token=TOKEN)
    card = hub.files("user/wrapped")["README.md"].decode()
    assert "generator=generator" in card
    assert "samples.png" not in hub.files("user/wrapped")
    with pytest.raises(InputError, match="was saved without its generator"):
        exptilt.load("user/wrapped")
    assert torch.equal(exptilt.load("user/wrapped", generator=wrapped).sample(2), tilted.sample(2))


@pytest.mark.slow
def test_every_command_that_takes_a_model_takes_an_id(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    small_tilted().save_pretrained(tmp_path / "run")
    assert call("push", "run", "--repo", "user/model", "--private", "--revision", "v1", "--quiet") == 0
    assert capsys.readouterr().out.startswith(f"{hub.url}/user/model/commit/")
    assert hub.repositories["user/model"].private
    model = "user/model@v1"
    assert call("sample", model, "-n", 2, "--out", "x.npz", "--quiet") == 0
    evaluate = ("evaluate", model, "--data", "digits", "-n", 140, "--seeds", 0, "--quiet")
    assert call(*evaluate, "--json", "result.json") == 0
    assert json.loads((tmp_path / "result.json").read_text())["model"] == model
    assert call("likelihood", model, "-n", 8, "--method", "importance", "--json", "z.json", "--quiet") == 0
    assert call("report", model, "-n", 2, "--out", "page.html", "--quiet") == 0
    assert call("export", model, "--out", "exported", "--quiet") == 0
    assert call("push", model, "--repo", "user/copy", "--quiet") == 0
    assert capsys.readouterr().out.count("/user/copy/commit/") == 1
    snapshot = locate(model)
    assert snapshot.name == hub.repositories["user/model"].branches["v1"]
    assert isinstance(exptilt.load(snapshot), TiltedGenerator)
    tilt = ("--data", "digits", "--limit", 64, "--iterations", 2, "--energy-width", 4, "--steps", 1)
    small_vae().push_to_hub("user/vae")
    assert call("tilt", "user/vae", *tilt, "--features", "none", "--out", "tilted", "--quiet") == 0
    assert not (tmp_path / "user").exists()
    # The model is untrained: its codes tell nothing of the data. Without features nothing is chosen by quality.
    told = capsys.readouterr().err.splitlines()
    expected = ("posterior collapse", "quality is not measured")
    assert [line for line in told if not any(words in line for words in expected)] == []
    assert call("report", model, "--quiet") == 2
    assert "is no folder here to write the page to; give --out" in capsys.readouterr().err
    for arguments, code in ((("sample", "user/none", "--out", "y.png"), 2), (("push", "none", "--repo", "user/x"), 2)):
        assert call(*arguments, "--quiet") == code
        assert capsys.readouterr().err.count("\n") == 1
    hub.stop()
    assert call("sample", "user/none", "--out", "y.png", "--quiet") == 1
    assert capsys.readouterr().err.count("\n") == 1
