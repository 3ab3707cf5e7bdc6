"""The page of ``exptilt demo --web``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from exptilt import demo as demo_story
from exptilt.commands.common import find_device, say
from exptilt.errors import InputError
from exptilt.web.address import require_free
from exptilt.web.catalogue import Catalogue, find_models, models_in

if TYPE_CHECKING:
    from exptilt import options

PLACES = (Path("checkpoints"), Path("runs"))
# Reached from this machine alone.
_HOST = "127.0.0.1"
INSTALL = "pip install 'exptilt[demo]' (with -c constraints.txt in a checkout, to keep torch as it is)"


def serve_page(args: options.Demo) -> None:
    """Serve the page of the models that were given or found, until it is interrupted."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("--web", "needs gradio, which is not installed", INSTALL)
    # Before the minutes that the demo's model may take.
    host = _HOST if args.host is None else args.host
    require_free(host, args.port)
    device = find_device(args.device)
    folders = find_models(args.models) if args.models else _found(args.out)
    if not folders:
        say("no tilted model under checkpoints/ or runs/: the demo makes one first, in 2 to 4 minutes", args.quiet)
        demo_story.run(args.out, seed=args.seed, device=device, quiet=args.quiet)
        folders = _found(args.out)
    # Slow to import, and there only with the extra.
    from exptilt.web.serve import serve

    # Without the address the page is of no use, so it is said even if --quiet.
    serve(Catalogue(folders, device), host=host, port=args.port, say=lambda text: say(text, False))


def _found(out: Path) -> dict[str, Path]:
    return {name: folder for place in (*PLACES, out) for name, folder in models_in(place).items()}
