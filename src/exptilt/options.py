"""What each command takes: its options, their types and defaults. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from exptilt.config import EnergyName, KernelName, Precision, SamplerConfig
from exptilt.presets import PRESETS, RECIPES, Scale

Number = Annotated[int, tyro.conf.arg(aliases=["-n"])]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    quiet: bool = False
    """No progress bar, no printed configuration."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class OnDevice(Common):
    """What a command takes that computes with a model."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, or cuda."""


@dataclass(frozen=True, kw_only=True)
class Seeded(OnDevice):
    """What a command takes that draws random numbers."""

    seed: int = 0
    """Fixes everything random."""


@dataclass(frozen=True, kw_only=True)
class Chain(Seeded):
    """The chain at sampling; what is not given is the model's own, or the recipe's."""

    kernel: KernelName | None = None
    """Kernel of the chain at sampling; an option below that it does not use is refused."""
    steps: int | None = None
    """Its steps."""
    step_size: float | None = None
    """Its ε, all kernels but isir."""
    noise_scale: float | None = None
    """Factor on the noise (langevin)."""
    gradient_limit: float | None = None
    """Clip each entry of the gradient to ± this, 0 for none (langevin)."""
    leapfrog_steps: int | None = None
    """Leapfrog steps in one step (hmc)."""
    friction: float | None = None
    """Rate at which momentum is forgotten (underdamped)."""
    candidates: int | None = None
    """Latents that a step chooses from (isir, ex2mcmc)."""
    resample: int | None = None
    """Prior samples among which each chain's start is chosen by weight; with --steps 0 that is the result."""
    replicas: int | None = None
    """Copies of each chain at temperatures up to the prior's, 1 for none (mala, hmc, underdamped)."""
    adapt: float | None = None
    """Adapt ε to this mean acceptance (0.6 is usual) on separate chains, then keep it (mala, hmc, ex2mcmc)."""

    def chain_changes(self) -> dict[str, Any]:
        """The settings of the chain that were given, by their names in SamplerConfig."""
        names = [setting.name for setting in dataclasses.fields(SamplerConfig)]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Demo(Seeded):
    """All steps on embedded data: train, freeze, tilt, sample, evaluate, report. 2 to 4 minutes on 2 cores.

    With --web, a page in the browser to play with tilted models, which needs the extra demo.
    """

    models: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of the page's models, or folders of such folders; unless given, those under checkpoints/ and runs/, or
    the demo's, which is then made first."""
    out: Path = Path("runs/demo")
    """Folder of the result: result.json, grid.png, report.html."""
    web: bool = False
    """Serve the page until Ctrl-C, in place of the demo."""
    host: str | None = None
    """Address that the page listens on; unless given 127.0.0.1, which is reached from this machine alone."""
    port: int | None = None
    """Port that the page listens on; the first free one from 7860 on unless given."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(Seeded):
    """Train a generator, or a feature network, from data."""

    preset: tyro.conf.Positional[Literal[*PRESETS]]  # type: ignore[valid-type]
    """What to train. Options that are not given are the preset's."""
    out: Path
    """Folder of the run."""
    data: str | None = None
    """Name, path or Hub id; the preset's own data set unless given."""
    scale: Scale = "paper"
    """paper: the paper's sizes and epochs. laptop: shorter and smaller, for 2 cores."""
    vae: Path | None = None
    """Folder of the trained VAE that two-stage, vae-flow and mixture presets build on (mixture: of any generator with
    an encoder)."""
    epochs: int | None = None
    """Passes over the training set."""
    batch_size: int | None = None
    """Images in one update."""
    learning_rate: float | None = None
    """The optimizer's learning rate."""
    ema_decay: float | None = None
    """Decay of the exponential moving average of the weights that is kept; 0 keeps the last weights."""
    precision: Precision | None = None
    """Arithmetic of convolutions; auto is bfloat16 where the processor has it."""
    limit: int | None = None
    """Use only this many images of each split, the first."""
    resume: bool = False
    """Continue the run in --out."""
    log: str | None = None
    """Also log to a tracker: tensorboard, trackio, wandb, or another that accelerate knows."""


@dataclass(frozen=True, kw_only=True)
class Drawn(Chain):
    """Samples: by the model's chain, or by another method."""

    temperature: float | None = None
    """Of a generator that is not tilted: z ~ N(0, T²) in place of N(0, 1)."""
    baseline: Literal["rejection", "dot", "dgflow"] | None = None
    """In place of the chain, with the same energy: rejection sampling (Azadi et al. 2019), discriminator optimal
    transport (Tanaka 2019), or discriminator gradient flow (Ansari et al. 2021); --steps and --step-size are theirs."""
    percentile: float | None = None
    """Accept more, less exactly: a prior sample at this percentile is accepted with probability ½ (rejection)."""
    divergence: Literal["kl", "js", "logd", "chi2"] | None = None
    """Divergence that the flow lowers, kl unless given (dgflow)."""
    batch_size: int | Literal["auto"] | None = None
    """Chains side by side. auto: the fastest of a few numbers, tried at the start for two steps each."""
    compile: bool = False
    """Run the chains through torch.compile: minutes at the start; on a CPU the chains are then slower."""


@dataclass(frozen=True, kw_only=True)
class Tilt(Chain):
    """Learn an energy for a frozen generator, and save the tilted generator."""

    generator: tyro.conf.Positional[Path]
    """Folder or Hub id of the generator; or of a tilted one, whose energy is then trained further (one on samples and
    one on latents add up); or uniform: noise in place of one, for an energy-based model on pixels."""
    data: str
    """Name, path or Hub id of the training data."""
    out: Path
    """Folder of the run."""
    recipe: Literal[*RECIPES] = "default"  # type: ignore[valid-type]
    """Named settings; the options below change them where they are given."""
    objective: Literal["maximum_likelihood", "logistic_ratio"] | None = None
    """Training objective of the energy."""
    relative: float | None = None
    """α of the relative ratio p/(αp + (1−α)q) of data p and samples q, at most 1/α; 0 is the plain ratio."""
    space: Literal["x", "z", "pixel"] | None = None
    """What the energy sees: samples, or latents; pixel: samples, in which the chains move too (flows only)."""
    encoder: Literal["own", "learned", "best"] | None = None
    """Where latents of the data come from: the generator's encoder, or one learned from the generator's samples. best:
    the generator's, and where its codes decode to less diversity than data and samples have, the better of both."""
    code_noise: float | None = None
    """Noise on codes of images by an encoder that draws none, in [0, 1): a in √(1 − a²)·z + a·ω (--space z)."""
    energy: EnergyName | None = None
    """Energy network."""
    energy_width: int | None = None
    """Its first stage's channels, or its hidden units."""
    dropout: float | None = None
    """Dropout rate in training (gated, pyramid)."""
    mirror: bool | None = None
    """Count mirror images as data too (--space z); by default where that is known to be right (cifar10)."""
    weight_decay: float | None = None
    """AdamW's decoupled weight decay."""
    floor: float | None = None
    """Try a floor under E, at the level that this share of held-out codes is below; 0 for none (--space z)."""
    strengths: tuple[float, ...] | None = None
    """λ in exp(−λE); of several the best on held-out images is kept."""
    normalization: Literal["none", "spectral"] | None = None
    """Normalisation of the energy's weights (resnet, small)."""
    largest_strength: float | None = None
    """While the largest strength is the best, larger ones are tried, up to this."""
    lengths: tuple[float, ...] | None = None
    """Shares of the chain's steps that are tried with each strength, for example 0.5 1."""
    iterations: int | None = None
    """Updates of the energy."""
    stages: int | None = None
    """Rounds of a ratio; after the first, its negatives are samples of the model as tilted so far."""
    stage_iterations: int | None = None
    """Updates of each of these later rounds."""
    stage_learning_rate: float | None = None
    """Their learning rate."""
    pool: int | None = None
    """Samples of the tilted model to draw such negatives from."""
    batch_size: int | None = None
    """Positives, and negatives, in one update."""
    learning_rate: float | None = None
    """Adam's learning rate."""
    energy_regularization: float | None = None
    """Weight of E(x⁺)² + E(x⁻)² in the loss."""
    gradient_clip: float | None = None
    """Clip the norm of the weights' gradient to this, 0 for none."""
    chains: Literal["short_run", "persistent", "replay", "jarzynski"] | None = None
    """Chains in training: restarted at each update, continued, continued a batch at a time, or continued with weights
    (needs an exact kernel, for example --chain-kernel mala)."""
    walkers: int | None = None
    """Number of chains that are kept."""
    restart: float | None = None
    """Probability with which a continued chain restarts at the prior (persistent, replay)."""
    chain_kernel: KernelName | None = None
    """Kernel of the chain in training."""
    chain_steps: int | None = None
    """Steps of the chain in training."""
    chain_step_size: float | None = None
    """ε of the chain in training."""
    chain_noise_scale: float | None = None
    """Factor on its noise (langevin)."""
    chain_gradient_limit: float | None = None
    """Clip each entry of its gradient to ± this, 0 for none (langevin)."""
    check_every: int | None = None
    """Updates between two checks of quality, which are also the checkpoints."""
    precision: Precision | None = None
    """Arithmetic of convolutions; auto is bfloat16 where the processor has it."""
    features: str = "auto"
    """Feature network of the quality checks: auto (the data set's own; for 5,000 other images or more, random), none,
    random (weights that are not trained), a name or a folder."""
    limit: int | None = None
    """Use only this many training images, the first."""
    resume: bool = False
    """Continue the run in --out."""
    log: str | None = None
    """Also log to a tracker: tensorboard, trackio, wandb, or another that accelerate knows."""


@dataclass(frozen=True, kw_only=True)
class Sample(Drawn):
    """Draw samples from a generator or a tilted generator."""

    model: tyro.conf.Positional[Path]
    """Folder of the model, or its id on the Hugging Face Hub: user/name or user/name@revision."""
    out: Path
    """A .png (a grid), a .npz (images as uint8), or a folder: of PNG files, or of shards, see --format."""
    format: Literal["webdataset", "parquet"] | None = None
    """Write shards of any number of samples to a folder, with a manifest: tar files that WebDataset reads (a PNG each,
    or a .npy of points), or Parquet files as on the Hugging Face Hub."""
    shard_size: int | None = None
    """Samples in a shard (--format); 10,000 unless given."""
    resume: bool = False
    """Keep the shards or PNG files that are in the folder --out already, and draw the others."""
    n: Number = 64
    """Number of samples."""
    start: int = 0
    """Index of the first sample: sample i of a seed is always the same."""
    base: bool = False
    """Sample from the generator without its tilt, at the same latents."""
    columns: int | None = None
    """Columns of the grid; 8 unless given."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Drawn):
    """Measure samples against the test set: FID, KID, precision, recall, density, coverage, class entropy.

    Of the toy sets: modes, share of points near one, energy distance, log-density under the truth.
    """

    model: tyro.conf.Positional[Path]
    """Folder or Hub id of the model; of a tilted one, base and tilted are measured side by side. Or images, all of
    which are measured: a folder of PNG or JPEG files, or a .npz, .npy, .safetensors or .parquet file."""
    seed: int = 0
    """Fixes the chains that --adapt tunes ε on; the seeds of the samples are --seeds."""
    data: str
    """Name, path or Hub id of the data."""
    n: Number = 10_000
    """Samples for each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the sampling."""
    features: str = "auto"
    """Feature network: auto (the data set's own), a name, a folder, random (weights that are not trained), inception
    (Inception-v3, downloaded once), or inception:FILE (its weights, as torch-fidelity publishes them). Inception needs
    the extra eval."""
    protocol: Literal["default", "paper"] = "default"
    """paper: Inception features, 10,000 samples against the 10,000 test images."""
    no_cache: bool = False
    """Compute the features of test and training set anew; they are kept in $EXPTILT_CACHE, else in the user's cache
    folder."""
    json: Path | None = None
    """A second place for the result. The first, result.json in the model's folder, is left alone for images, with
    --temperature or --baseline, and where it cannot be written."""


@dataclass(frozen=True, kw_only=True)
class Compare(Common):
    """Print two evaluations side by side, with the interval of the difference; refused if their protocols differ."""

    a: tyro.conf.Positional[Path]
    """Result of exptilt evaluate: the file, or the folder of the run."""
    b: tyro.conf.Positional[Path]
    """Another."""
    json: Path | None = None
    """Where to write the differences."""


@dataclass(frozen=True, kw_only=True)
class Likelihood(Seeded):
    """Estimate log Z of a tilted generator, with bounds; of a flow, bits per dimension before and after too."""

    model: tyro.conf.Positional[Path]
    """Folder of the tilted generator, in which log Z is stored; or its Hub id."""
    data: str | None = None
    """Name, path or Hub id of the data: its test images give bits per dimension, of a flow only."""
    n: Number = 2000
    """Samples of the prior."""
    method: Literal["smc", "ais", "importance"] = "smc"
    """smc: sequential Monte Carlo. ais: annealed importance sampling. importance: without annealing."""
    json: Path | None = None
    """A second place for the result; the only one where likelihood.json in the model's folder cannot be written."""
    limit: int | None = None
    """Use only this many test images, the first (--data)."""


@dataclass(frozen=True, kw_only=True)
class Report(Seeded):
    """Write one HTML page about a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or a model's Hub id."""
    out: Path | None = None
    """The page; report.html in the run's folder unless given, needed for a Hub id."""
    n: Number = 64
    """Samples shown."""


@dataclass(frozen=True, kw_only=True)
class Export(OnDevice):
    """Write a model's folder for others: half-precision weights, figures of those weights, a grid and a card."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or a model's Hub id."""
    out: Path
    """The new folder."""
    data: str | None = None
    """Data set to measure on; without it the card has no figures."""
    n: Number = 10_000
    """Samples for each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the sampling."""
    features: str = "auto"
    """Feature network: auto (the data set's own), random, a name or a folder."""
    precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type of the weights in the file."""
    link_generator: Path | None = None
    """Exported generator under a tilted one, beside --out: link to it in place of a second copy."""


@dataclass(frozen=True, kw_only=True)
class Push(Common):
    """Upload a run to the Hugging Face Hub, with a card: figures, protocol, a grid. Needs an access token: HF_TOKEN,
    or the one that hf auth login has stored."""

    run: tyro.conf.Positional[Path]
    """Folder of the model; its result.json, where exptilt evaluate has left one, is the table on the card."""
    repo: str
    """user/name on the Hub; made if it is not there."""
    private: bool = False
    """Make it private."""
    revision: str | None = None
    """Branch, made if it is not there; the main branch unless given."""
    license: str = "apache-2.0"
    """Licence of the weights, as the Hub names it."""


@dataclass(frozen=True, kw_only=True)
class Bench(Seeded):
    """Time chains against other ways of running them: a plain loop, torchebm, blackjax. Minutes; see benchmarks/."""

    json: Path | None = None
    """Where to write the figures."""
    workload: tuple[Literal["vae", "glf", "glow", "toy", "latent"], ...] = ("vae", "glf", "glow", "toy", "latent")
    """What to run: a generator of the paper with its E, toy points, or an energy on latents (MALA)."""
    method: tuple[Literal["exptilt", "exptilt-float32", "exptilt-compiled", "plain", "torchebm", "blackjax"], ...] = (
        "exptilt",
        "plain",
        "torchebm",
        "blackjax",
    )
    """What to compare. Ratios are to plain, the eager float32 loop that a reader of the paper would write."""
    rounds: int = 3
    """Times that each method runs, in turns with the others."""
    threads: int | None = None
    """Threads of a method on the CPU; torch's own choice unless given."""
    scaling: bool = False
    """In place of workloads: how cost grows with chains, steps, latent size and depth."""
    quick: bool = False
    """Tiny sizes, to see that everything runs; the figures mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Reproduce(Seeded):
    """Make a table or a figure of the paper anew, and some of our own. Finished parts are skipped: a run that was
    interrupted continues when the command is repeated.

    table1: FIDs of all generators and recipes beside the paper's. fig5.1: toy sets. fig5.2, figC: samples before and
    after. fig5.3: chains in time. cost: quality against gradients. overfitting: quality against training. reach: what
    a FID costs in latent space and on pixels (section 5.4). b2: the statements of the paper's B.2. ablation: the
    default recipe with each of its choices undone.
    """

    what: tyro.conf.Positional[
        Literal["table1", "fig5.1", "fig5.2", "fig5.3", "figC", "cost", "overfitting", "reach", "b2", "ablation"]
    ]
    """What to make."""
    out: Path = Path("runs/reproduce")
    """Folder of results and runs; those of a scale lie in a folder of its name."""
    scale: Scale = "laptop"
    """paper: the paper's settings. laptop: shorter and smaller, for 2 cores."""
    only: tuple[str, ...] = ()
    """Rows of table1, runs of b2 or choices of ablation, all unless given: for example --only vae vae-ebm."""
    data_sets: tuple[Literal["mnist", "fashion", "cifar10", "digits"], ...] = ("mnist", "fashion", "cifar10")
    """Columns of table1, sets of ablation; b2 takes the first. The digits are no column of the paper, but quick."""
    kinds: tuple[Literal["vae", "glf", "glow"], ...] = ("vae", "glf")
    """Kinds of generators of ablation."""
    training_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings of ablation."""
    generators: Path | None = None
    """Folder of trained generators, for example checkpoints, with vae-mnist and so on; others are trained."""
    models: tuple[Path, ...] = ()
    """Tilted models of the figures, or folders of such; unless given, those in --out and in checkpoints/."""
    kernels: tuple[KernelName, ...] = ("langevin", "mala", "hmc", "underdamped", "ex2mcmc")
    """Kernels of cost."""
    levels: tuple[float, ...] = ()
    """FIDs of reach; unless given, the least of each run."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Samples for each seed (table1: 10,000; ablation, b2, cost: 2,000), or in a grid (fig5.2: 64; figC: 144)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the sampling of table1, ablation and b2; --seed is that of all training, and of the figures' samples."""
    epochs: int | None = None
    """Passes over the data of every generator, in place of the scale's."""
    iterations: int | None = None
    """Updates of every energy, in place of the scale's."""
    steps: int | None = None
    """Steps of every chain at sampling, in place of the recipe's (table1, b2), or of the longest chain (cost: 200)."""
    limit: int | None = None
    """Use only this many training images, the first (table1, ablation, b2)."""
    publish: bool = False
    """Enter the cells of table1 into docs/results.json and docs/results.md."""
