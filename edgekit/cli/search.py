"""`edgekit search`: the best of many recipes within limits, in the time given; it goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.cli.command import command as make_command
from edgekit.cli.drawing import check_path
from edgekit.cli.export import recipe_parameters, run
from edgekit.cli.options import file_option, option
from edgekit.cli.output import Output
from edgekit.devices.device import load_device
from edgekit.recipe import Recipe, read_recipe

BUDGET = "20min"


@make_command(
    """
    edgekit search recipe.toml --budget 20min --plot front.png
    edgekit search fashion-vit --device raspberry-pi-5 --limit latency=0.5ms,size=500kB --budget 5min
    """,
    name="search",
)
@recipe_parameters
@file_option("--plot", heading="Output", help="Draw the front: .svg, .html or .png.")
@option(
    "--resume/--fresh",
    "resume",
    heading="Limits",
    default=True,
    help="Go on with what an earlier search of this model for this device measured, or begin anew.  [default: resume]",
)
def command(out: Output, source: str | None, plot: Path | None, resume: bool, **options: Any) -> None:
    """Search precision by layer, tokens by block and more, together.

    SOURCE is a recipe file (.toml, the option names with _ for -) or what `edgekit export` takes. An additive model of
    what each setting costs is measured on calibration data and solved exactly; its proposals are built and judged on
    other samples, and correct it, until nothing better is expected or the time is spent. Ends in the Pareto front and
    the best bundle within the limits; where nothing meets them the nearest is named (exit code 14).
    """
    given = {name: value for name, value in options.items() if value is not None}
    if source is not None and source.endswith(".toml"):
        given = {**read_recipe(source), **given}
    elif source is not None:
        given["source"] = source
    recipe = Recipe.of({"budget": BUDGET, **given}, origin="recipe key")
    for profile in (recipe.device, recipe.edge, recipe.cloud):
        if profile is not None:
            load_device(profile)
    check_path(plot, recipe.force)
    run(out, recipe, plot, fresh=not resume)
