"""The page's style sheet: light and dark by the reader's setting, black on white on paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --ink: #16191d; --muted: #5c6570; --line: #e1e4e8; --axis: #8a929c;
  --p50: #1f5fa8; --p90: #6ea3da; --p99: #b9d3ee; --alarm: #b42318; --warn: #8a5a00; --ok: #1a7040;
  --alarm-soft: #fdecea; --warn-soft: #fdf3dc; --ok-soft: #e5f4ea; --second: #c2611f; --third: #6d4aa8;
  --fourth: #2c8a7d; }
@media (prefers-color-scheme: dark) { :root {
  --page: #101317; --card: #191d23; --ink: #e8ebef; --muted: #9aa4b0; --line: #2b313a; --axis: #6b7580;
  --p50: #8abaf0; --p90: #4a81bd; --p99: #2c4f78; --alarm: #ff8a7d; --warn: #f0c163; --ok: #79d19b;
  --alarm-soft: #3a1d1b; --warn-soft: #362b14; --ok-soft: #16301f; --second: #f0a06a; --third: #b79cf0;
  --fourth: #6fcabd; } }
@media print { :root { color-scheme: light;
  --page: #fff; --card: #fff; --ink: #000; --muted: #444; --line: #ccc; --axis: #666;
  --p50: #1f5fa8; --p90: #6ea3da; --p99: #b9d3ee; --alarm: #b42318; --warn: #8a5a00; --ok: #1a7040;
  --alarm-soft: #fff; --warn-soft: #fff; --ok-soft: #fff; --second: #c2611f; --third: #6d4aa8;
  --fourth: #2c8a7d; }
  section { break-inside: avoid; } section:nth-last-of-type(-n+2) { break-inside: auto; } details { display: none; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-ligatures: none; /* a printed page is searched for its words */ }
main { max-width: 980px; margin: 0 auto; padding: 28px 20px 56px; }
h1 { font-size: 1rem; font-weight: 600; margin: 0; color: var(--muted); }
h2 { font-size: 1.1rem; margin: 0 0 4px; }
h3 { font-size: .95rem; margin: 20px 0 6px; }
p { margin: 4px 0 12px; }
.verdict { font-size: 1.75rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em;
  text-wrap: balance; margin: 6px 0 8px; }
.verdict .alarm { display: block; font-size: 1.15rem; line-height: 1.4; letter-spacing: 0; margin: 8px 0 0;
  font-weight: 600; color: var(--alarm); }
.about { color: var(--muted); margin: 0 0 16px; }
.muted { color: var(--muted); }
.notice { border-left: 4px solid var(--warn); background: var(--warn-soft); padding: 8px 14px; border-radius: 4px;
  margin: 0 0 16px; font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 0 0 16px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px;
  margin: 0 0 16px; padding: 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.tiles dt { color: var(--muted); font-size: .82rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles dd small { white-space: nowrap; font-size: .8rem; font-weight: 400; color: var(--muted); }
@media (max-width: 640px) { .tiles { grid-template-columns: repeat(2, 1fr); } .verdict { font-size: 1.35rem; } }
.plot { overflow-x: auto; } .plot svg { display: block; width: 100%; min-width: 600px; height: auto; margin: 8px 0; }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums; }
svg text.tick, svg text.label { fill: var(--muted); font-size: 12px; }
svg text.strong { font-weight: 650; paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--axis); }
svg .interval { stroke: var(--p50); stroke-width: 3; } svg .band { fill: var(--ok-soft); }
svg .mark { stroke: var(--ink); stroke-dasharray: 4 3; }
svg .alarm { stroke: var(--alarm); stroke-width: 1.5; } svg text.alarm-text { fill: var(--alarm); }
svg .throttled { fill: var(--alarm); opacity: .16; }
svg .bar { fill: var(--p90); } svg .tail { fill: var(--second); }
svg rect.p50 { fill: var(--p50); } svg rect.p90 { fill: var(--p90); } svg rect.p99 { fill: var(--p99); }
svg .area { fill: var(--p99); opacity: .45; } svg .dot { fill: var(--p50); stroke: var(--card); stroke-width: 1.5; }
svg .curve, svg .line0, svg .line1, svg .line2, svg .line3 { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .curve, svg .line0 { stroke: var(--p50); } svg .line1 { stroke: var(--second); }
svg .line2 { stroke: var(--third); }
svg .line3 { stroke: var(--fourth); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; color: var(--muted); padding: 0 0 4px; }
th, td { text-align: left; padding: 5px 10px 5px 0; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--muted); font-weight: 500; } tbody th { font-weight: 500; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.wrap { overflow-wrap: anywhere; } .facts th { white-space: nowrap; width: 1%; }
tr.flag td, tr.flag th { background: var(--warn-soft); }
.badge { display: inline-block; border-radius: 99px; padding: 0 10px; font-size: .82rem; font-weight: 600;
  white-space: nowrap; border: 1px solid currentColor; }
.tainted { color: var(--alarm); background: var(--alarm-soft); }
.clean { color: var(--ok); background: var(--ok-soft); }
.unknown { color: var(--muted); }
details { margin: 10px 0 0; } summary { cursor: pointer; color: var(--muted); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 0 28px; }
ul { margin: 4px 0; padding-left: 20px; } code { font-family: ui-monospace, Consolas, monospace; font-size: .86em; }
"""
