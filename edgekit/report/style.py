"""The page's looks: one sheet, light and dark, screen and paper. Plots take their colours from the same variables."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #14181f; --soft: #565e6c; --line: #dfe3e9; --grid: #e8ebf0;
  --good: #0f7b4f; --warn: #a35200; --accent: #1d5fd1; --quiet: #a7b0be;
  --c1: #1d5fd1; --c2: #c2570c; --c3: #0b7f74; --c4: #8a3ffc; --c5: #b4235a; --c6: #5d6b1f; --c7: #566274;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1217; --card: #181c23; --ink: #e9ecf1; --soft: #a2abb9; --line: #2b313b; --grid: #242a33;
    --good: #4cc38a; --warn: #f0a35e; --accent: #77a7ff; --quiet: #56606f;
    --c1: #77a7ff; --c2: #f0a35e; --c3: #4fc7b8; --c4: #be95ff; --c5: #ff8fb4; --c6: #c3d06a; --c7: #a2abb9;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
.skip { position: absolute; left: -999px; }
.skip:focus { left: 1rem; top: 1rem; background: var(--paper); padding: .5rem 1rem; z-index: 2; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
header, main, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3.5rem; }
.eyebrow { margin: 0; color: var(--soft); font-size: .875rem; letter-spacing: .01em; }
h1 { margin: .25rem 0 .75rem; font-size: clamp(2rem, 5vw, 3rem); line-height: 1.1; letter-spacing: -.022em;
  font-weight: 680; text-wrap: balance; overflow-wrap: anywhere; }
h2 { margin: 0 0 .25rem; font-size: 1.375rem; line-height: 1.25; letter-spacing: -.012em; font-weight: 650; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1rem; font-weight: 620; }
p { margin: 0 0 1rem; max-width: 44rem; }
.lead { font-size: 1.1875rem; line-height: 1.5; color: var(--soft); max-width: 46rem; }
.lead strong { color: var(--ink); font-weight: 620; }
.note { color: var(--soft); font-size: .9375rem; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 1.75rem 0 0; padding: .75rem 0;
  border-block: 1px solid var(--line); font-size: .9375rem; }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--ink); text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(16.5rem, 1fr)); gap: 1rem; margin: 2rem 0 0; }
.tile { background: var(--card); border-radius: 14px; padding: 1.125rem 1.25rem 1.25rem; margin: 0; }
.tile dt { color: var(--soft); font-size: .875rem; }
.tile dd { margin: 0; }
.tile .value { font-size: 2rem; line-height: 1.2; font-weight: 660; letter-spacing: -.02em; white-space: nowrap; }
.tile .value small { font-size: 1rem; font-weight: 500; letter-spacing: 0; color: var(--soft); margin-left: .2em; }
.tile .detail { color: var(--soft); font-size: .875rem; line-height: 1.4; }
section { padding: 3rem 0 0; }
figure { margin: 1.25rem 0 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .5rem; max-width: 46rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 0 2.5rem; }
.pair > * { min-width: 0; }
.pair h3 + figure { margin-top: .75rem; }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif;
  fill: var(--soft); }
svg .name, svg .number { fill: var(--ink); }
svg .number { font-weight: 600; }
svg .axis { stroke: var(--quiet); } svg .grid { stroke: var(--grid); }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
.k1 { --k: var(--c1); } .k2 { --k: var(--c2); } .k3 { --k: var(--c3); } .k4 { --k: var(--c4); } .k5 { --k: var(--c5); }
.k6 { --k: var(--c6); } .k7 { --k: var(--c7); } .k0 { --k: var(--quiet); }
svg .fill { fill: var(--k); } svg .stroke { stroke: var(--k); fill: none; }
svg .dot { fill: var(--k); fill-opacity: .72; stroke: var(--paper); stroke-width: 1; }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1.125rem; margin: .75rem 0 0; padding: 0; list-style: none;
  font-size: .875rem; color: var(--soft); }
.key i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; background: var(--k); margin-right:
  .4em; }
.scroll { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
table.narrow { max-width: 44rem; }
th, td { text-align: left; padding: .5rem 1.25rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align:
  baseline; }
th { font-weight: 560; color: var(--soft); font-size: .875rem; }
thead th { white-space: nowrap; }
tbody th { color: var(--ink); font-size: inherit; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.why { min-width: 15rem; color: var(--soft); }
tr.chosen td, tr.chosen th { background: color-mix(in srgb, var(--accent) 9%, transparent); }
tr.chosen td.why { color: var(--good); font-weight: 600; }
code { font: .875em/1.4 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--accent); font-size: .9375rem; width: fit-content; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: 2rem 1.5rem; margin:
  1.25rem 0 0;
  padding: 0; list-style: none; }
.samples img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 12px; background:
  var(--card); }
.samples .file { margin: .625rem 0 .25rem; font-size: .8125rem; color: var(--soft); overflow-wrap: anywhere; }
.samples ol { margin: 0; padding: 0; list-style: none; font-size: .875rem; }
.samples li li { display: grid; grid-template-columns: 1fr auto; gap: .75rem; padding: .125rem 0; color: var(--soft); }
.samples li li:first-child { color: var(--ink); font-weight: 600; }
.samples .label { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .375rem 1.5rem; margin: 1rem 0 0; font-size:
  .9375rem; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
footer { padding: 3.5rem 1.5rem 3rem; color: var(--soft); font-size: .875rem; }
.visually-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space:
  nowrap; }
@media (max-width: 34rem) { .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; } }
@media (max-width: 44rem) { figure.plot { overflow-x: auto; } figure.plot svg { min-width: 42rem; } }
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #f4f5f7; --ink: #000; --soft: #444; --line: #ccc; --grid: #e5e5e5;
    --good: #0f7b4f; --warn: #a35200; --accent: #1d5fd1; --quiet: #999;
    --c1: #1d5fd1; --c2: #c2570c; --c3: #0b7f74; --c4: #8a3ffc; --c5: #b4235a; --c6: #5d6b1f; --c7: #566274; }
  body { font-size: 10.5pt; } nav, .skip { display: none; } header { padding-top: 0; }
  header, main, footer { max-width: none; padding-inline: 0; }
  section { padding-top: 1.5rem; } figure, .tile, tr, .samples > li { break-inside: avoid; } h2, h3 { break-after:
    avoid; }
  .tile, tr.chosen td, tr.chosen th, svg, .key i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
""".strip()
