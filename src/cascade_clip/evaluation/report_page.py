"""The frame of an HTML report: head, style, and places for what `report.py` fills in."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1c2430; --soft: #5d6876; --line: #e2e6eb; --seen: #2f6db3; --unseen: #d9822b }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink); background:
#fff; max-width: 1000px; margin: 0 auto;
  padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; padding-bottom: .3rem; border-bottom: 2px solid
var(--line) }
ul, ol { padding-left: 1.4rem; margin: .5rem 0 }
li { overflow-wrap: anywhere }
.lead, .key, small, figcaption { color: var(--soft) }
.key { font-size: .9rem; margin: .3rem 0 .8rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem;
margin-top: 1.2rem }
.card { border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; display: flex;
flex-direction: column }
.card b { font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums }
.card span { font-weight: 600 }
.scroll { overflow: auto; max-width: 100%; max-height: 95vh }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { padding: .22rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
white-space: nowrap }
th { color: var(--soft); font-weight: 600 }
td:first-child, th:first-child { text-align: left; white-space: normal; padding-left: 0 }
td.bars, th.bars { width: 45%; padding: .22rem .8rem }
.bars i { display: block; border-radius: 2px; background: var(--seen) }
.bars i.iou { height: 9px; margin-bottom: 2px }
.bars i.acc { height: 3px; opacity: .45 }
.bars i.unseen { background: var(--unseen) }
.mark { color: #8a4b0c; background: #fdeedd; border-radius: 4px; padding: 0 .35rem; font-size:
.78rem; white-space: nowrap }
.up { color: #1a7f4b }
.down { color: #b3372f }
.split td { color: var(--soft); padding-top: 1rem; text-align: left }
img { max-width: 100%; display: block }
img.wide { max-width: none }
img.matrix { min-width: 640px }
figure { margin: 0 0 1.6rem }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px }
.row img { width: 100%; border-radius: 4px }
figcaption { margin-top: .4rem; font-size: .92rem; overflow-wrap: anywhere }
figcaption b { color: var(--ink) }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem }
.legend span { white-space: nowrap; color: var(--ink) }
.legend span.only { color: var(--soft) }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right:
.35em; border: 1px solid #0002 }
@media (max-width: 560px) { td.bars, th.bars { width: 28%; padding: .22rem .3rem } td, th {
padding: .22rem .3rem; font-size: .92rem } }
@media print { section { break-inside: avoid-page } }
</style>
</head>
<body>
<h1>$title</h1>
<p class="lead">$lead</p>
<div class="cards">$cards</div>
$body
</body>
</html>
""")
