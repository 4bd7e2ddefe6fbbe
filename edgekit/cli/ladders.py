"""The table of ways to run a split bundle: parts by tier, and what crosses between them at which rates."""

from __future__ import annotations

from edgekit.bundle.manifest import Manifest, Rate, Variant
from edgekit.cli.output import Column, Table
from edgekit.cli.wording import count_text, percent_text, size_text


def ladders(manifest: Manifest) -> Table:
    """One row a variant, and one more for each further codec on its way."""
    columns = (
        Column("variant", style="cyan"),
        Column("runs on"),
        Column("sends"),
        Column("rates", number=True),
        Column("finest", number=True),
        Column("smallest within the limit", number=True),
    )
    rows = []
    for variant in manifest.variants:
        first = (variant.name, _route(manifest, variant))
        codecs = [manifest.codec(name) for name in variant.codecs]
        if not codecs:
            rows.append((*first, "nothing", "-", "-", "-"))
        for codec in codecs:
            rows.append((*first, codec.kind, str(len(codec.rates)), *_ends(manifest, codec.rates)))
            first = ("", "")
    return Table(columns, rows, "Ways to run it")


def _route(manifest: Manifest, variant: Variant) -> str:
    """The tiers in order; `inspect` lists the parts."""
    route = " > ".join(dict.fromkeys(manifest.part(name).tier for name in variant.parts))
    return f"{route}, may leave early" if variant.exit is not None or variant.exits else route


def _ends(manifest: Manifest, rates: tuple[Rate, ...]) -> tuple[str, str]:
    limit = manifest.provenance.recipe.get("max_drop")
    fitting = [rate for rate in rates if isinstance(limit, int | float) and rate.drop <= limit]
    smallest = min(fitting, key=lambda rate: rate.bytes_mean, default=None)
    return _rate(rates[0]), _rate(smallest) if smallest else f"none of {count_text(len(rates), 'rate')}"


def _rate(rate: Rate) -> str:
    kept = f", {percent_text(rate.agreement)} agree" if rate.agreement is not None else ""
    return f"{size_text(rate.bytes_mean)}, {round(rate.drop, 2) + 0.0:.2f} points lost{kept}"
