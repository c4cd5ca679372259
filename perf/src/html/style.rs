//! How the page looks, in daylight and in the dark.

pub(super) const CSS: &str = "
:root { color-scheme: light dark; --back: #fcfcfb; --card: #ffffff; --text: #1c2024; --soft: #5f6b76; --line: #dfe3e7;
  --one: #1f6feb; --two: #b35900; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1c2125; --text: #e6e9ec; --soft: #9aa5b0; --line: #333b42;
  --one: #6cb0ff; --two: #f0a35c; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
header p, section > p { color: var(--soft); margin: .25rem 0 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin-top: 1rem; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1rem; }
.tiles span { display: block; color: var(--soft); font-size: .85rem; }
.tiles b { font-size: 1.35rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles small { display: block; color: var(--soft); }
.tiles em { color: var(--bad); font-style: normal; font-weight: 600; }
svg { display: block; width: 100%; height: auto; min-width: 34rem; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .end { text-anchor: end; } svg .mid { text-anchor: middle; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .c0 { stroke: var(--one); } svg .c1 { stroke: var(--two); }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .c1.curve { stroke-dasharray: 6 3; }
svg .area { fill: var(--one); opacity: .13; stroke: none; }
svg .strip { fill: transparent; }
svg .strip:hover { fill: var(--soft); opacity: .18; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin-top: .6rem; }
th, td { text-align: right; padding: .3rem .5rem; border-top: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
tr:first-child > * { border-top: 0; }
th:first-child { text-align: left; }
.names td { text-align: left; white-space: normal; overflow-wrap: anywhere; width: 100%; }
details { margin-top: 1rem; color: var(--soft); }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: 12px; }
@media print { section { break-inside: avoid; } }
";
