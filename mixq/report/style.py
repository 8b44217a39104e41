"""The page's style sheet."""

CSS = """
:root { color-scheme: light; --ink: #1f2937; --quiet: #6b7280; --line: #e5e7eb; --red: #b91c1c; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.75rem; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
header p { margin: .1rem 0 1rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem; margin: 0 0 1.25rem; }
p { margin: 0 0 .75rem; }
section > :last-child { margin-bottom: 0; }
.quiet, .note { color: var(--quiet); }
.verdict { font-size: 1.5rem; line-height: 1.3; }
.verdict strong { color: #1b7f5c; }
.verdict.none { font-weight: 600; color: #92400e; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .75rem; margin-bottom: 1rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.card .name, .card .note { font-size: .82rem; }
.card .value { font-size: 1.45rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.loud { background: #fef2f2; border: 2px solid var(--red); color: #7f1d1d; border-radius: 10px; padding: 1rem 1.25rem;
  margin: 0 0 1.25rem; }
.loud > strong { font-size: 1.15rem; }
.loud ul { margin: .4rem 0 0; padding-left: 1.2rem; max-height: 16rem; overflow-y: auto; }
.note-box { background: #fffbeb; border: 1px solid #fcd34d; border-radius: 8px; padding: .6rem 1rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto .75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; }
th, td { padding: .28rem .6rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.chosen td { background: #ecfdf5; font-weight: 600; }
tr.silent td { background: #fef2f2; }
.reason { color: var(--quiet); white-space: normal; min-width: 20rem; }
.facts td { white-space: normal; }
code, pre { font: .85em/1.5 ui-monospace, monospace; }
pre { background: #f3f4f6; border-radius: 8px; padding: .9rem 1rem; overflow-x: auto; }
.chip { display: inline-block; min-width: 3.2rem; padding: 0 .5rem; border-radius: 5px; text-align: center;
  background: #e5e7eb; color: #374151; font-size: .8rem; font-weight: 600; }
.chip.int8 { background: #d1f0e2; color: #0f5b3f; }
.chip.bf16 { background: #d8e8f8; color: #1c4f86; }
.chip.fp16 { background: #fbe9c4; color: #7a5200; }
.bar { height: .75rem; border-radius: 3px; }
.inference { background: #2f6fb0; }
.compile { background: #c98a1b; }
.own { background: #9ca3af; }
.stack { display: flex; height: 1.1rem; border-radius: 4px; overflow: hidden; margin-bottom: .6rem; }
.kind { border-left: .8rem solid; padding: 0 1rem 0 .4rem; background: none; }
.kind.inference { border-color: #2f6fb0; }
.kind.compile { border-color: #c98a1b; }
.kind.own { border-color: #9ca3af; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
