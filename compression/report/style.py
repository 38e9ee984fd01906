"""The report's style sheet: no fonts or pictures from elsewhere, light or dark as the reader's system is."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2430; --soft: #5d6b7c; --line: #dfe4ea;
  --original: #a9b4c2; --result: #2f6fed; --better: #0b7a4b; --worse: #b3261e; --note: #fff7e0; --note-line: #e0b93c; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029; --ink: #e6eaf0; --soft: #97a4b5;
  --line: #2c3542; --original: #566375; --result: #6ea0ff; --better: #4cc38a; --worse: #ff8a80; --note: #2a2513;
  --note-line: #8f7526; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 14px; margin: 0 0 4px; color: var(--soft); font-weight: 600; }
p { margin: 0 0 8px; }
.soft { color: var(--soft); }
.eyebrow { color: var(--soft); font-size: 12px; letter-spacing: .08em; text-transform: uppercase; margin: 0 0 6px; }
.card, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(225px, 1fr)); gap: 14px; margin-top: 22px; }
.card { padding: 16px 18px; }
.headline { font-size: 20px; font-weight: 650; margin: 2px 0 10px; }
.range { display: block; font-size: 13px; font-weight: 400; color: var(--soft); }
.better { color: var(--better); }
.worse { color: var(--worse); }
.notes { background: var(--note); border: 1px solid var(--note-line); border-radius: 10px; padding: 12px 18px;
  margin-top: 22px; }
.notes ul { margin: 4px 0 0; padding-left: 18px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 8px 12px; border-bottom: 1px solid var(--line); vertical-align: middle; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-size: 12.5px; font-weight: 600; }
tbody th { font-weight: 500; }
td.number, th.number { text-align: right; white-space: nowrap; }
.bars { display: grid; grid-template-columns: max-content minmax(30px, 1fr) max-content; gap: 4px 10px;
  align-items: center; font-size: 12.5px; }
.bars svg { width: 100%; height: 14px; display: block; }
.bars .original { fill: var(--original); }
.bars .result { fill: var(--result); }
.bar-name { color: var(--soft); }
.bar-value { text-align: right; font-variant-numeric: tabular-nums; }
svg.interval { display: block; overflow: visible; }
svg .neutral { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 2; }
svg .whisker { stroke: currentColor; stroke-width: 3; stroke-linecap: round; opacity: .55; }
svg .estimate { fill: currentColor; }
details { margin-bottom: 10px; }
.card + details { margin-top: 10px; }
summary { cursor: pointer; padding: 12px 16px; font-weight: 550; overflow-wrap: anywhere; }
details > .inside { padding: 0 16px 14px; }
.inside h3:not(:first-child) { margin-top: 14px; }
.wide { min-width: 700px; }
dl { display: grid; grid-template-columns: minmax(140px, max-content) 1fr; gap: 4px 18px; margin: 0 0 8px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12.5px; }
code { font-size: 12.5px; overflow-wrap: anywhere; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
@media print { body { background: #fff; } details > .inside { display: block; } }
"""
