"use strict";
// Draws curves and maps that mm_lens/drawing/page.py describes. One panel is one SVG, drawn at the
// width there is: text keeps its size on a phone, where panels go below each other.
const SVG = "http://www.w3.org/2000/svg", charts = [];
const tip = document.createElement("div");
tip.id = "tip"; tip.setAttribute("role", "status"); document.body.append(tip);

function make(tag, attributes, parent, text) {
  const made = document.createElementNS(SVG, tag);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}
function plain(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3 ? x.toExponential(1) : String(+x.toPrecision(4));
}
function ticks(low, high, most, step) {
  if (!step) {
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    step = power * [1, 2, 5, 10].find(f => f * power >= raw);
  }
  while ((high - low) / step > 2 * most) step *= 2;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9; k++) found.push(+(k * step).toPrecision(12));
  return found;
}
function mark(parent, symbol, x, y, r, open) {
  const shapes = {
    "square": [[-1, -1], [1, -1], [1, 1], [-1, 1]],
    "diamond": [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]],
    "triangle-up": [[0, -1.25], [1.2, .9], [-1.2, .9]],
    "triangle-down": [[0, 1.25], [1.2, -.9], [-1.2, -.9]],
    "cross": [[-.4, -1.2], [.4, -1.2], [.4, -.4], [1.2, -.4], [1.2, .4], [.4, .4], [.4, 1.2],
              [-.4, 1.2], [-.4, .4], [-1.2, .4], [-1.2, -.4], [-.4, -.4]],
  };
  const kind = open ? "mark open" : "mark";
  if (!shapes[symbol]) return make("circle", { cx: x, cy: y, r, class: kind }, parent);
  const corners = shapes[symbol].map(p => [x + .9 * r * p[0], y + .9 * r * p[1]].join()).join(" ");
  return make("polygon", { points: corners, class: kind }, parent);
}
const DASH = { dash: "7 4", dot: "2 4", dashdot: "8 3 2 3", solid: "" };

function show(event, html) {
  tip.innerHTML = html; tip.style.visibility = "visible";
  const x = event.clientX + 14, y = event.clientY + 14;
  tip.style.left = Math.max(4, Math.min(x, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (y + tip.offsetHeight < innerHeight ? y : Math.max(4, y - 28 - tip.offsetHeight)) + "px";
}
const hide = () => { tip.style.visibility = "hidden"; };

function panel(chart, k, width) {
  const { figure, hidden } = chart, suffix = k ? k + 1 : "";
  const xaxis = figure.layout["xaxis" + suffix], yaxis = figure.layout["yaxis" + suffix];
  const unit = figure.layout.yaxis.title?.text || "";
  const H = figure.layout.height - 90, box = { l: 62, r: 12, t: 30, b: 48 };
  const svg = make("svg", { viewBox: `0 0 ${width} ${H}`, width: "100%", class: "panel" });
  const own = figure.data.filter(t => (t.xaxis || "x") === "x" + suffix);
  const title = (figure.layout.annotations || [])[k]?.text || "";
  make("text", { x: width < 480 ? 4 : box.l, y: 18, class: "title" }, svg, title);
  const right = width - box.r, bottom = H - box.b;
  if (own[0]?.type === "heatmap") return map(svg, own[0], xaxis, yaxis, box, right, bottom);
  const [x0, x1] = xaxis.range, X = v => box.l + (v - x0) / (x1 - x0) * (right - box.l);
  const range = yaxis.range || [0, 1], log = yaxis.type === "log";
  const Y = v => bottom - ((log ? Math.log10(v) : v) - range[0]) / (range[1] - range[0]) * (bottom - box.t);
  const frame = "clip" + chart.id + k;
  make("rect", { x: box.l, y: box.t - 4, width: right - box.l, height: bottom - box.t + 8 },
    make("clipPath", { id: frame }, svg));
  if (yaxis.range) {
    let at = yaxis.tickvals || ticks(range[0], range[1], 6);
    for (const v of at) {
      make("line", { x1: box.l, x2: right, y1: Y(v), y2: Y(v), class: "grid" }, svg);
      make("text", { x: box.l - 6, y: Y(v) + 4, class: "tick end" }, svg, plain(v));
    }
  } else make("text", { x: (box.l + right) / 2, y: (box.t + bottom) / 2, class: "tick middle" }, svg, "no value");
  const names = xaxis.ticktext, most = Math.max(3, Math.floor((right - box.l) / 34));
  const places = xaxis.tickvals || ticks(x0, x1, most, xaxis.dtick);
  const every = names ? Math.ceil(places.length / most) : 1;
  places.forEach((v, i) => {
    if (i % every) return;
    make("line", { x1: X(v), x2: X(v), y1: box.t, y2: bottom, class: "grid" }, svg);
    make("text", { x: X(v), y: bottom + 17, class: "tick middle" }, svg, names ? names[i] : plain(v));
  });
  make("line", { x1: box.l, x2: right, y1: bottom, y2: bottom, class: "axis" }, svg);
  make("text", { x: (box.l + right) / 2, y: H - 8, class: "tick middle" }, svg, xaxis.title.text);
  make("text", { transform: `translate(14 ${(box.t + bottom) / 2}) rotate(-90)`, class: "tick middle" }, svg, unit);
  const inside = make("g", { "clip-path": `url(#${frame})` }, svg), points = [];
  for (const t of own) {
    if (hidden.has(t.legendgroup)) continue;
    const group = make("g", { style: `--c:${t.fillcolor || t.line.color}` }, inside);
    const at = t.x.map((x, i) => t.y[i] === null || (log && t.y[i] <= 0) ? null : [X(x), Y(t.y[i])]);
    if (t.fill) {
      if (at.length) make("polygon", { points: at.filter(Boolean).map(p => p.join()).join(" "), class: "band" }, group);
      continue;
    }
    let path = "", down = false;
    for (const p of at) { if (p) path += (down ? "L" : "M") + p.join(" "); down = Boolean(p); }
    make("path", { d: path, class: "curve", "stroke-dasharray": DASH[t.line.dash || "solid"],
      "stroke-width": t.line.width }, group);
    if (!t.text) continue;
    at.forEach((p, i) => {
      if (!p) return;
      mark(group, t.marker.symbol, p[0], p[1], 4.5, t.marker.open?.[i]);
      points.push({ x: p[0], y: p[1], text: t.text[i] });
    });
  }
  const ring = make("circle", { r: 9, class: "ring", visibility: "hidden" }, svg);
  let now = -1;
  function point(i, event) {
    now = i; const p = points[i], area = svg.getBoundingClientRect(), s = area.width / width;
    ring.setAttribute("cx", p.x); ring.setAttribute("cy", p.y); ring.setAttribute("visibility", "visible");
    show(event || { clientX: area.left + p.x * s, clientY: area.top + p.y * s }, p.text);
  }
  const leave = () => { ring.setAttribute("visibility", "hidden"); hide(); };
  svg.addEventListener("pointermove", event => {
    const area = svg.getBoundingClientRect(), s = area.width / width;
    const x = (event.clientX - area.left) / s, y = (event.clientY - area.top) / s;
    let best = -1, least = 24;
    points.forEach((p, i) => { const d = Math.hypot(p.x - x, p.y - y); if (d < least) { least = d; best = i; } });
    if (best < 0) leave(); else point(best, event);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") leave();
    if (!step || !points.length) return;
    event.preventDefault(); point((now + step + points.length) % points.length);
  });
  svg.setAttribute("tabindex", 0); svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", `${chart.about}, ${title}: ${points.length} points; arrow keys go through them`);
  return svg;
}

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function shade(share) {
  const at = Math.max(0, Math.min(3.9999, share * 4)), k = Math.floor(at);
  return `rgb(${VIRIDIS[k].map((c, i) => Math.round(c + (at - k) * (VIRIDIS[k + 1][i] - c))).join()})`;
}
function map(svg, t, xaxis, yaxis, box, right, bottom) {
  const flat = t.z.flat().filter(v => v !== null), low = Math.min(...flat), high = Math.max(...flat);
  const end = right - 70, w = (end - box.l) / t.x.length, h = (bottom - box.t) / t.y.length;
  t.z.forEach((row, i) => row.forEach((v, k) => {
    const cell = make("rect", { x: box.l + k * w, y: bottom - (i + 1) * h, width: w + .5, height: h + .5,
      fill: v === null ? "none" : shade((v - low) / (high - low || 1)) }, svg);
    const said = `<b>head ${t.y[i]}, layer ${t.x[k]}: ${v === null ? "no value" : plain(v)}</b>`;
    cell.addEventListener("pointermove", event => show(event, said));
  }));
  svg.addEventListener("pointerleave", hide);
  const everyX = Math.ceil(t.x.length / 16), everyY = Math.ceil(t.y.length / 14);
  t.x.forEach((v, k) => k % everyX || make("text", { x: box.l + (k + .5) * w, y: bottom + 17, class: "tick middle" }, svg, v));
  t.y.forEach((v, k) => k % everyY || make("text", { x: box.l - 6, y: bottom - (k + .5) * h + 4, class: "tick end" }, svg, v));
  make("text", { x: (box.l + end) / 2, y: bottom + 40, class: "tick middle" }, svg, xaxis.title.text);
  make("text", { transform: `translate(14 ${(box.t + bottom) / 2}) rotate(-90)`, class: "tick middle" }, svg, yaxis.title.text);
  for (let k = 0; k < 40; k++) make("rect", { x: end + 12, y: bottom - (k + 1) * (bottom - box.t) / 40, width: 12,
    height: (bottom - box.t) / 40 + .5, fill: shade(k / 39) }, svg);
  make("text", { x: end + 28, y: bottom, class: "tick" }, svg, plain(low));
  make("text", { x: end + 28, y: box.t + 10, class: "tick" }, svg, plain(high));
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `heads × layers, from ${plain(low)} to ${plain(high)}`);
  return svg;
}

function drawChart(id, about, figure) {
  const host = document.getElementById(id);
  const chart = { id: charts.length, about, figure, hidden: new Set(), width: 0 };
  charts.push(chart);
  const panels = document.createElement("div"), legend = document.createElement("div");
  panels.className = "panels"; legend.className = "legend"; host.append(panels, legend);
  const count = Object.keys(figure.layout).filter(key => key.startsWith("xaxis")).length;
  function render(force) {
    const width = host.clientWidth;
    if (!width || (!force && width === chart.width)) return;
    chart.width = width; hide();
    const each = width < 700 ? width : Math.floor((width - 16 * (count - 1)) / count);
    panels.style.gridTemplateColumns = width < 700 ? "1fr" : `repeat(${count}, 1fr)`;
    panels.replaceChildren(...Array.from({ length: count }, (_, k) => panel(chart, k, each)));
    for (const title of panels.querySelectorAll("text.title")) {  // on a phone: closer, not cut off
      const room = each - title.getAttribute("x") - 2;
      if (title.getComputedTextLength() > room) {
        title.setAttribute("textLength", room); title.setAttribute("lengthAdjust", "spacingAndGlyphs");
      }
    }
  }
  for (const t of figure.data.filter(t => t.showlegend)) {
    const button = document.createElement("button");
    button.type = "button"; button.setAttribute("aria-pressed", "true");
    const key = make("svg", { width: 34, height: 14, "aria-hidden": "true", style: `--c:${t.line.color}` }, button);
    make("line", { x1: 0, x2: 34, y1: 7, y2: 7, class: "curve", "stroke-width": 2, "stroke-dasharray": DASH[t.line.dash] }, key);
    mark(key, t.marker.symbol, 17, 7, 4.5);
    button.append(" " + t.name);
    button.addEventListener("click", () => {
      const on = chart.hidden.delete(t.legendgroup);
      if (!on) chart.hidden.add(t.legendgroup);
      button.setAttribute("aria-pressed", String(on)); render(true);
    });
    legend.append(button);
  }
  // In the next frame: drawing changes the height, which would be told in this one again.
  new ResizeObserver(() => requestAnimationFrame(() => render())).observe(host);
  chart.render = render; render();
}
// What is folded would be missing on paper.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  charts.forEach(chart => chart.render());
});
// A link to something folded opens it.
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", unfold); addEventListener("load", unfold);
