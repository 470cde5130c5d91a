"""The style sheet of the page: light, dark, narrow and printed."""

from jaxprune.report.figures import COLORS

# The palette of the figures, lighter where it would be too dark on a dark page.
_DARK = {
    0: "#e6e9ee",
    3: "#1fc396",
    4: "#f08a3c",
    5: "#4a7df5",
    7: "#bdbd4e",
    8: "#c08a7e",
}
_LIGHT_COLORS = "".join(f"--m{i}:{color};" for i, color in enumerate(COLORS))
_DARK_COLORS = "".join(f"--m{i}:{color};" for i, color in _DARK.items())

STYLE = f"""
:root {{ color-scheme: light; --page:#f4f6f9; --card:#fff; --text:#1b2330; --soft:#5b6675;
  --line:#dde2ea; --accent:#1f5fbf; --heat:90 155 240; --warn:#fff3d1; --good:#0a7a55;
  {_LIGHT_COLORS} }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ color-scheme: dark; --page:#10141b; --card:#181e28; --text:#e6e9ee; --soft:#9aa6b6;
  --line:#2b3442; --accent:#7db2ff; --heat:37 99 201; --warn:#3a3114; --good:#4fd3a3;
  {_DARK_COLORS} }}
}}
* {{ box-sizing: border-box; }}
html {{ scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
a {{ color: var(--accent); }}
.page {{ max-width: 82rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }}
header .kind {{ margin: 0; color: var(--accent); font-size: .8rem; font-weight: 600;
  letter-spacing: .08em; text-transform: uppercase; }}
h1 {{ margin: .1rem 0 .4rem; font-size: 2.1rem; line-height: 1.15; overflow-wrap: anywhere; }}
h2 {{ margin: 2.6rem 0 .9rem; font-size: 1.35rem; }}
h3 {{ margin: 0 0 .6rem; font-size: 1.08rem; }}
h4 {{ margin: 0 0 .3rem; font-size: .88rem; font-weight: 600; }}
.lead {{ margin: 0; max-width: 60rem; font-size: 1.08rem; overflow-wrap: anywhere; }}
.small, .caption {{ color: var(--soft); font-size: .86rem; overflow-wrap: anywhere; }}
.caption {{ max-width: 62rem; margin: .8rem 0 0; }}
.note {{ margin: .8rem 0 0; padding: .5rem .9rem; border-radius: 8px; background: var(--warn);
  font-size: .92rem; overflow-wrap: anywhere; }}
nav {{ font-size: .9rem; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1.2rem 0 0; padding: 0;
  list-style: none; }}
nav a {{ text-decoration: none; line-height: 1.9; }}
nav a:hover {{ text-decoration: underline; }}
nav .sub {{ display: none; }}
.card {{ margin: 0 0 1rem; padding: 1.1rem 1.2rem; border: 1px solid var(--line);
  border-radius: 12px; background: var(--card); min-width: 0; }}
.verdicts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr));
  gap: 1rem; margin: 1.4rem 0 1rem; }}
.verdicts .card {{ margin: 0; border-top: 3px solid var(--accent); }}
.verdicts h3 {{ color: var(--soft); font-size: .84rem; font-weight: 600; }}
.verdicts p {{ margin: 0; overflow-wrap: anywhere; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9.6rem, 1fr));
  gap: .7rem; }}
.tile {{ padding: .7rem .85rem; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); font-size: .84rem; line-height: 1.45; overflow-wrap: anywhere; }}
.tile b {{ display: block; margin: .1rem 0; font-size: 1.12rem; }}
.tile .clear {{ color: var(--good); font-weight: 600; }}
.panels {{ display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  gap: 1.1rem 1.6rem; align-items: start; }}
.panels > div {{ min-width: 0; max-width: 36rem; }}
.maps {{ display: flex; flex-wrap: wrap; gap: 1.1rem 2.2rem; }}
.maps > div {{ min-width: 0; max-width: 100%; }}
.figures {{ display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem; }}
.figures > .card {{ margin: 0; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; margin: 0 0 .7rem;
  font-size: .88rem; }}
.key {{ display: inline-flex; align-items: center; gap: .4rem; }}
svg {{ display: block; overflow: visible; }}
svg svg {{ overflow: hidden; }}
svg.plot {{ width: 100%; height: auto; }}
svg text {{ fill: var(--text); font-size: 12px; font-family: inherit; }}
svg.map text {{ font-size: 11.5px; }}
.middle {{ text-anchor: middle; }}
.end {{ text-anchor: end; }}
.grid {{ stroke: var(--line); }}
.axis, .mark, .shared {{ fill: none; stroke: var(--soft); }}
.mark, .dashed, .shared {{ stroke-dasharray: 5 4; }}
.line, .thin, .dashed, .front, .bar {{ fill: none; stroke: currentColor; }}
.line {{ stroke-width: 2; }}
.thin {{ stroke-opacity: .55; }}
.front {{ stroke-width: 9; stroke-opacity: .2;
  stroke-linejoin: round; stroke-linecap: round; }}
.key .front {{ stroke-width: 7; }}
.marker, .shape {{ fill: currentColor; }}
.hollow {{ fill: var(--card); stroke: currentColor; stroke-width: 1.4; }}
.hit {{ fill: transparent; }}
.point:hover .marker, .point:hover .hollow {{ stroke: var(--text); stroke-width: 2.5; }}
.point:hover rect {{ stroke: var(--text); stroke-width: 1.5; }}
.cell {{ fill: rgb(var(--heat)); }}
.empty {{ fill: none; stroke: var(--m4); stroke-width: 1.6; stroke-dasharray: 3 2; }}
.scroll {{ overflow-x: auto; max-width: 100%; padding-bottom: .3rem; }}
details {{ margin: 0 0 .7rem; }}
details.card {{ padding: 0; }}
summary {{ cursor: pointer; font-weight: 600;
  padding: .75rem 1.2rem; overflow-wrap: anywhere; }}
details.card > .inside {{ padding: 0 1.2rem 1rem; }}
.more > summary {{ padding: .6rem 0; font-size: .9rem; color: var(--accent); }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }}
th, td {{ padding: .32rem .75rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }}
th {{ color: var(--soft); font-weight: 600; }}
td {{ background: rgb(var(--heat) / calc(var(--s, 0) * .55)); }}
td:first-child, th:first-child {{ position: sticky; left: 0; background: var(--card); }}
tbody tr:hover td {{ box-shadow: inset 0 -2px 0 var(--accent); }}
td b {{ font-weight: 750; }}
footer {{ margin-top: 2rem; }}
ul.facts {{ margin: 0; padding-left: 1.1rem; }}
@media (min-width: 1100px) {{
  .page {{ display: grid; grid-template-columns: 13rem minmax(0, 1fr); gap: 0 2.5rem;
    padding-top: 2.2rem; }}
  header, footer {{ grid-column: 2; }}
  .figures {{ grid-template-columns: repeat(2, minmax(0, 1fr)); grid-auto-flow: dense; }}
  .figures > .card:not(.half) {{ grid-column: span 2; }}
  nav {{ grid-row: 1 / span 9; grid-column: 1; }}
  nav ul {{ position: sticky; top: 2rem; display: block; margin: .3rem 0 0;
    max-height: calc(100vh - 4rem); overflow-y: auto; }}
  nav .sub {{ display: block; padding-left: .8rem; font-size: .84rem; }}
  nav .sub a {{ color: var(--soft); }}
}}
@media (max-width: 600px) {{
  h1 {{ font-size: 1.7rem; }}
  .page {{ padding: 1.1rem .75rem 2rem; }}
  .card, summary {{ padding: .85rem .8rem; }}
  details.card > .inside {{ padding: 0 .8rem .8rem; }}
  .tiles {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
}}
@media print {{
  :root {{ --page:#fff; }}
  html {{ font-size: 11.5px; }}
  body {{ font-size: 1rem; }}
  nav {{ display: none; }}
  .page {{ display: block; max-width: none; padding: 0; }}
  .panels {{ grid-template-columns: 1fr 1fr; }}
  .verdicts {{ grid-template-columns: repeat(3, 1fr); }}
  .card, .tile {{ break-inside: avoid; padding: .7rem; }}
  details.card {{ break-inside: auto; }}
  details::details-content {{ content-visibility: visible; display: block; }}
  h2, summary {{ break-after: avoid; }}
  .scroll {{ overflow: visible; }}
  svg.map {{ max-width: 100%; }}
  table {{ font-size: 9px; }}
  th, td {{ padding: .2rem .35rem; white-space: normal; }}
  td {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
}}
"""
