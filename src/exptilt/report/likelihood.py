"""What ``exptilt likelihood`` found, as rows of a table: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exptilt.errors import InputError
from exptilt.report.page import Block, Code, KeyValues, Section


def likelihood_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of log Z, its bounds, ESS and cost, and of flows bits per dimension.

    Args:
        result: What ``exptilt likelihood`` writes to its file.
    """
    log_z, bits = result["log_z"], result["bits_per_dim"]
    low, high = log_z["interval"]
    lower, upper = ("–" if log_z[name] is None else f"{log_z[name]:.3f}" for name in ("lower", "upper"))
    rows = [
        ("log Z", f"{log_z['value']:.3f} ± {log_z['standard_error']:.3f} nats, 95% interval [{low:.3f}, {high:.3f}]"),
        ("bounds", f"{lower} < log Z < {upper} (95% each; upper: from long chains)"),
        ("ESS", f"{log_z['ess']:.1f} of {log_z['n']:,}"),
        ("cost", f"{log_z['steps']} steps, {log_z['gradient_evaluations']:,} gradients, {log_z['seconds']:.1f} s"),
    ]
    if bits is not None:
        change = f"{bits['change']:+.5f} ± {bits['change_error']:.5f}"
        pair = (f"{name} {bits[name]:.4f} ± {bits[f'{name}_error']:.4f}" for name in ("base", "tilted"))
        rows.append(("bits/dim", f"{', '.join(pair)}; change {change}"))
    return [(name, text.replace("-", "−")) for name, text in rows]


def likelihood_title(result: Mapping[str, Any]) -> str:
    """Method, size and seed of the estimate."""
    return f"{result['log_z']['method']}, N = {result['log_z']['n']:,}, seed {result['seed']}"


def likelihood_section(result: Mapping[str, Any], source: object) -> Section:
    """The same on a page.

    Args:
        result: As in :func:`likelihood_rows`.
        source: The file that it was read from, for the error.

    Raises:
        InputError: It is something else.
    """
    try:
        rows, title = likelihood_rows(result), likelihood_title(result)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(source, "is no result of exptilt likelihood", "write it anew, or remove it") from None
    bits = result["bits_per_dim"]
    text = "Z is the constant that normalises the tilted density p(z) exp(−λE): log Z is known up to its error only."
    if bits is not None:
        text += f" Bits per dimension are upper bounds, by uniform dequantisation, of {bits['n']:,} test images."
    blocks: list[Block] = [KeyValues(rows)]
    if command := result.get("command"):
        blocks.append(Code(str(command), caption=f"{title}; ± is one standard error"))
    return Section("Likelihood", text, blocks)
