"""Compiled chains: the same samples as without, and without the compiler a line that says why."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt import cli
from exptilt.compiled import CompiledPotential
from exptilt.config import SamplerConfig
from exptilt.energies import MLPEnergy, ResNetEnergy, SmallEnergy
from exptilt.energies.compose import SumEnergy
from exptilt.generators import VAE, Glow, ToyVAE
from exptilt.sampling.kernel import value_and_gradient
from exptilt.tilted import TiltedGenerator

COMPILE = torch.compile
MALA = SamplerConfig(kernel="mala", steps=4, step_size=0.05)

# Of torch's own parts, which compiling imports.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def points(**options: object) -> TiltedGenerator:
    torch.manual_seed(1)
    return TiltedGenerator(
        ToyVAE(2, 3, 8),
        latent_energy=MLPEnergy(3, 8, 1),
        sampler=MALA,
        precision="float32",
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def compiled_functions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is given to torch.compile, which traces it and its gradient; C++ is left out, as it takes minutes."""
    given: list[object] = []

    def compile_(function: object, **options: object) -> object:
        given.append(function)
        return COMPILE(function, backend="aot_eager", **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", compile_)
    return given


def assert_same_samples(tilted: TiltedGenerator) -> None:
    expected = tilted.sample(11, seed=2, batch_size=4)
    tilted.compile_chains = True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="chains run uncompiled")
        # torch's tracing looks at the gradients of whatever it meets, and warns of its own look.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        torch.testing.assert_close(tilted.sample(11, seed=2, batch_size=4), expected, rtol=1e-4, atol=1e-4)


def randomised(module: nn.Module) -> nn.Module:
    """Glow's couplings start as the identity, which would hide a wrong one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


@pytest.mark.slow
def test_of_glow_and_the_papers_energy_the_repeated_blocks_are_compiled(compiled_functions: list[object]) -> None:
    glow, energy = randomised(Glow(1, 8, 1, 2, 4)), ResNetEnergy(1, 4)
    assert_same_samples(TiltedGenerator(glow, energy, sampler=MALA, precision="float32"))  # type: ignore[arg-type]
    names = [type(each).__name__ for each in compiled_functions]
    assert Counter(names) == {"CouplingNetwork": 2, "HalvingBlock": 2, "ResidualBlock": 4}


@pytest.mark.slow
def test_of_other_networks_decode_and_the_whole_energy_are_compiled(compiled_functions: list[object]) -> None:
    tilted = TiltedGenerator(
        VAE(1, 8, 4), SmallEnergy(1, 4), latent_energy=MLPEnergy(8, 4), sampler=MALA, precision="float32"
    )
    weights = {name: tensor.clone() for name, tensor in tilted.state_dict().items()}
    assert_same_samples(tilted)
    names = [getattr(each, "__name__", type(each).__name__) for each in compiled_functions]
    assert names == ["SmallEnergy", "MLPEnergy", "decode"]
    # The model itself is left as it is.
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tilted.state_dict().items())
    assert "decode" not in vars(tilted.generator)


def test_blocks_inside_of_a_sum_are_found_and_the_rest_of_it_is_not_compiled(compiled_functions: list[object]) -> None:
    energy = SumEnergy([ResNetEnergy(1, 4), SmallEnergy(1, 4)])
    CompiledPotential(TiltedGenerator(Glow(1, 8, 1, 1, 4), energy, compile=True).chain_potential())
    kinds = {type(each).__name__ for each in compiled_functions}
    assert kinds == {"CouplingNetwork", "HalvingBlock", "ResidualBlock"}


def test_a_batch_of_another_size_compiles_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()

    def see(function: nn.Module, **_options: object) -> object:
        function.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        return function

    monkeypatch.setattr(torch, "compile", see)
    plain, tilted = points(), points(compile=True)
    torch.testing.assert_close(tilted.sample(11, batch_size=4), plain.sample(11, batch_size=4))
    assert set(sizes) == {4}


def test_value_and_gradient_in_one_are_those_of_the_potential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    tilted, z = points(), torch.randn(7, 3)
    compiled = CompiledPotential(tilted.chain_potential())
    for ours, theirs in zip(value_and_gradient(compiled, z), value_and_gradient(tilted.potential, z), strict=True):
        torch.testing.assert_close(ours, theirs)
    # Each row's gradient is weighted by its own incoming one.
    weights, at = torch.arange(7.0), z.clone().requires_grad_(True)
    (weighted,) = torch.autograd.grad((weights * compiled(at)).sum(), at)
    torch.testing.assert_close(weighted, weights[:, None] * value_and_gradient(tilted.potential, z)[1])
    torch.testing.assert_close(compiled(z), tilted.potential(z))


@pytest.mark.parametrize("when", ["at once", "at the first value", "at a gradient"])
def test_where_compiling_fails_chains_go_on_uncompiled_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    attempts = list[str]()

    def fail(*_: object) -> torch.Tensor:
        attempts.append(when)
        raise NotImplementedError("no such operation\nand a page about it")

    class FailsInGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1)

        backward = staticmethod(fail)

    def compile_(function: object, **_options: object) -> object:
        if when == "at once":
            fail()
        return fail if when == "at the first value" else FailsInGradient.apply

    plain = points().sample(9, batch_size=4)
    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.warns(UserWarning, match="uncompiled") as told:
        assert torch.equal(points(compile=True).sample(9, batch_size=4), plain)
    assert [str(warning.message) for warning in told] == [
        "chains run uncompiled: torch.compile failed: NotImplementedError: no such operation"
    ]
    assert len(attempts) == 1


def test_a_fault_of_the_network_itself_is_not_taken_for_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    tilted = points(compile=True)

    def fail(*_: object) -> None:
        raise RuntimeError("the network's own fault")

    assert tilted.latent_energy is not None
    tilted.latent_energy.register_forward_pre_hook(fail)
    with pytest.warns(UserWarning, match="uncompiled"), pytest.raises(RuntimeError, match="the network's own fault"):
        tilted.sample(3)


def test_a_memory_that_is_full_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = points().sample(16)

    def compile_(network: nn.Module, **_options: object) -> Callable[[torch.Tensor], torch.Tensor]:
        def of_few(z: torch.Tensor) -> torch.Tensor:
            if len(z) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return network(z)

        return of_few

    monkeypatch.setattr(torch, "compile", compile_)
    tilted = points(compile=True)
    with pytest.warns(UserWarning, match="memory") as told:
        torch.testing.assert_close(tilted.sample(16), plain)
    assert [str(warning.message) for warning in told] == ["the memory does not hold 16 at once: going on with 4"]
    assert tilted.batch_size == 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="there is no C++ compiler")
def test_chains_compiled_to_machine_code_give_the_same_samples() -> None:
    assert_same_samples(points())


@pytest.mark.slow
def test_without_a_cpp_compiler_the_line_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = pytest.importorskip("torch._inductor.config")
    # Code that was compiled before would need no compiler.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", (str(tmp_path / "none"),))
    torch.compiler.reset()
    plain = points().sample(5)
    with pytest.warns(UserWarning, match=r"InvalidCxxCompiler: No working C\+\+ compiler found"):
        assert torch.equal(points(compile=True).sample(5), plain)
    torch.compiler.reset()


def test_the_setting_is_passed_on_by_a_sum_and_not_stored(tmp_path: Path) -> None:
    tilted = points(compile=True)
    assert (tilted + MLPEnergy(2, 4)).compile_chains
    tilted.save_pretrained(tmp_path)
    loaded = exptilt.load(tmp_path)
    assert isinstance(loaded, TiltedGenerator)
    assert not loaded.compile_chains


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("options", [["--compile"], ["--batch-size", "auto"], ["--batch-size", 4]])
def test_speed_is_set_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[object]
) -> None:
    compiled, sizes = list[object](), list[int]()

    def compile_(function: nn.Module, **_options: object) -> object:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr("exptilt.tilted.fastest", lambda run_chains, candidates: 5)
    forward = MLPEnergy.forward
    monkeypatch.setattr(MLPEnergy, "forward", lambda self, x: (sizes.append(len(x)), forward(self, x))[1])
    points().save_pretrained(tmp_path / "model")
    sizes.clear()
    assert call("sample", tmp_path / "model", "-n", 10, "--out", tmp_path / "x.npz", *options) == 0
    told = capsys.readouterr().err
    assert bool(compiled) == ("--compile" in options)
    assert ("5 chains side by side" in told) == ("auto" in options)
    assert max(sizes) == {"--compile": 10, "auto": 5, 4: 4}[options[-1]]  # type: ignore[index]


@pytest.mark.parametrize("options", [["--compile"], ["--batch-size", "auto"]])
def test_a_model_without_a_chain_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    ToyVAE(2, 3, 8).save_pretrained(tmp_path / "model")
    assert call("sample", tmp_path / "model", "-n", 4, "--out", tmp_path / "x.npz", *options) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert " ".join(options) in told[0]
    assert not (tmp_path / "x.npz").exists()


def test_on_the_command_line_the_warning_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise NotImplementedError("no such operation")

    def show(*details: object) -> None:
        print(warnings.formatwarning(*details[:4]), end="", file=sys.stderr)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "compile", fail)
    # pytest collects warnings in place of printing them.
    monkeypatch.setattr(warnings, "showwarning", show)
    points().save_pretrained(tmp_path / "model")
    command = ("sample", tmp_path / "model", "-n", 4, "--out", tmp_path / "x.npz", "--quiet", "--compile")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert call(*command) == 0
    fault = "torch.compile failed: NotImplementedError: no such operation"
    assert capsys.readouterr().err == f"exptilt: warning: chains run uncompiled: {fault}\n"
