const panels = document.getElementById("panels"), tip = document.getElementById("tip");
const slider = document.getElementById("slider"), name = document.getElementById("layer");
const choice = document.getElementById("choice"), chosen = document.getElementById("chosen");
const shown = x => Math.abs(x) >= 1e4 || (x && Math.abs(x) < 1e-3) ? x.toExponential(2)
                                                             : String(+x.toPrecision(4));
const views = [data, ...data.more], picture = new Image(), drawn = [];
let view = data, held = null;  // held: {p, at} of a token, {p, box, cells} of a box
function take(k) {
  view = views[k];
  slider.max = view.layers.length - 1; slider.value = Math.min(+slider.value, +slider.max);
  document.getElementById("slide").hidden = view.layers.length < 2;
  document.getElementById("low").textContent = view.marks[0] + shown(view.low);
  document.getElementById("high").textContent = view.marks[1] + shown(view.high);
  document.getElementById("label").textContent = view.label;
  document.getElementById("bar").style.background =
    "linear-gradient(to right," + view.colours.filter((c, i) => i % 15 == 0).join(",") + ")";
  draw();
}
function colour(v) {
  const share = (v - view.low) / (view.high - view.low);
  return view.colours[Math.max(0, Math.min(255, Math.floor(share * 256)))];
}
function hatch(g) {
  const tile = document.createElement("canvas"); tile.width = tile.height = 8;
  const t = tile.getContext("2d"); t.strokeStyle = "#999";
  t.beginPath(); t.moveTo(0, 8); t.lineTo(8, 0); t.stroke(); return g.createPattern(tile, "repeat");
}
const values = (p, k) => view.parts[p.number].values[k];
function draw() {
  const k = +slider.value; name.textContent = view.layers[k];
  slider.setAttribute("aria-valuetext", view.layers[k]);
  words.forEach((span, i) => span.className = i == k ? "now" : "");
  for (const p of drawn) {
    const g = p.canvas.getContext("2d"), [s, t] = p.scale;
    g.clearRect(0, 0, p.canvas.width, p.canvas.height);
    g.fillStyle = hatch(g); g.fillRect(0, 0, data.width * s, data.height * t);
    p.cells.forEach((c, i) => {
      const v = values(p, k)[i]; if (v === null) return;
      const x = Math.round(c[0] * s), y = Math.round(c[1] * t);
      g.fillStyle = colour(v);
      g.fillRect(x, y, Math.round(c[2] * s) - x, Math.round(c[3] * t) - y);
    });
    g.drawImage(picture, 0, 0, data.width * s, data.height * t);
    const outline = (c, ink) => {
      g.lineWidth = 5; g.strokeStyle = "#fff";
      g.strokeRect(c[0] * s, c[1] * t, (c[2] - c[0]) * s, (c[3] - c[1]) * t);
      g.lineWidth = 3; g.strokeStyle = ink;
      g.strokeRect(c[0] * s, c[1] * t, (c[2] - c[0]) * s, (c[3] - c[1]) * t);
    };
    if (p.at >= 0) outline(p.cells[p.at], "#D55E00");
    if (held && held.p === p) outline(held.box || p.cells[held.at], "#0072B2");
  }
  tellHeld();
}
function linesOf(p, at) {
  const k = +slider.value, v = values(p, k)[at], part = view.parts[p.number];
  const said = part.words ? part.words[k][at].map(w => "“" + view.words[w] + "”").join(" ") : "";
  const lines = [p.places[at], view.label + ": " + (v === null ? "no value" : shown(v))];
  if (said) lines.push("top words: " + said);
  return lines;
}
function tellHeld() {
  if (!held) {
    chosen.textContent = "Click a token to keep it, drag to draw a box; Escape lets go.";
    chosen.className = "soft"; return;
  }
  chosen.className = "";
  if (held.at >= 0) { chosen.textContent = linesOf(held.p, held.at).join(" · "); return; }
  const mean = k => {
    const found = held.cells.map(i => values(held.p, k)[i]).filter(v => v !== null);
    return found.length ? shown(found.reduce((a, b) => a + b) / found.length) : "no value";
  };
  const over = view.layers.map((layer, k) => layer + " " + mean(k));
  const where = "x " + held.box.filter((_, i) => i % 2 == 0).map(Math.round).join("–")
    + ", y " + held.box.filter((_, i) => i % 2).map(Math.round).join("–");
  chosen.textContent = held.cells.length + " tokens in the box (" + where + " pixels), mean of "
    + view.label + ": " + (data.sentence ? mean(+slider.value) : over.join(" · "));
}
function place(p, event) {
  const box = p.canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * p.canvas.width / p.scale[0],
          (event.clientY - box.top) / box.height * p.canvas.height / p.scale[1]];
}
const cellAt = (p, [x, y]) => p.cells.findIndex(c => c[0] <= x && x < c[2] && c[1] <= y && y < c[3]);
function tell(p, event) {
  p.at = cellAt(p, place(p, event));
  tip.style.visibility = p.at < 0 ? "hidden" : "visible";
  if (p.at >= 0) {
    tip.replaceChildren(...linesOf(p, p.at).map(line => {
      const div = document.createElement("div"); div.textContent = line; return div; }));
    tip.style.left = Math.max(0, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth)) + "px";
    const below = event.clientY + 14 + tip.offsetHeight < innerHeight;
    tip.style.top = Math.max(0, event.clientY + (below ? 14 : -14 - tip.offsetHeight)) + "px";
  }
  draw();
}
function listen(p) {
  const { canvas } = p;
  let start = null, dragged = false;
  canvas.addEventListener("pointerdown", event => { start = place(p, event); dragged = false; });
  canvas.addEventListener("pointermove", event => {
    if (!start || !(event.buttons & 1)) { start = null; return tell(p, event); }
    const end = place(p, event);
    dragged = dragged || Math.hypot((end[0] - start[0]) * p.scale[0], (end[1] - start[1]) * p.scale[1]) > 12;
    if (!dragged) return;
    const box = [Math.min(start[0], end[0]), Math.min(start[1], end[1]),
                 Math.max(start[0], end[0]), Math.max(start[1], end[1])];
    const cells = p.cells.map((c, i) => [(c[0] + c[2]) / 2, (c[1] + c[3]) / 2, i])
      .filter(c => box[0] <= c[0] && c[0] < box[2] && box[1] <= c[1] && c[1] < box[3]).map(c => c[2]);
    held = { p, at: -1, box, cells }; p.at = -1; tip.style.visibility = "hidden"; draw();
  });
  canvas.addEventListener("click", event => {
    if (dragged) return;
    const at = cellAt(p, place(p, event));
    held = at < 0 || (held && held.p === p && held.at === at) ? null : { p, at }; draw();
  });
  canvas.addEventListener("mouseleave", () => {
    start = null; p.at = -1; tip.style.visibility = "hidden"; draw(); });
  canvas.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = held && held.p === p && held.at >= 0 ? held.at + step : 0;
    held = { p, at: (at + p.cells.length) % p.cells.length }; draw();
  });
}
// A strip of a picture is drawn broader than it is: else its tokens could not be told apart.
function fit(width, height) {
  const flat = data.flattest, scale = 1000 / Math.max(width, height), least = 1000 / flat;
  if (Math.max(width, height) > flat * Math.min(width, height)) document.getElementById("stretched")
    .textContent = "; the picture is stretched, it has " + data.width + "×" + data.height + " pixels";
  return [Math.max(width * scale, least), Math.max(height * scale, least)];
}
data.parts.forEach((part, number) => {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  const canvas = document.createElement("canvas");
  caption.textContent = part.name; figure.append(caption, canvas); panels.append(figure);
  const right = Math.max(data.width, ...part.cells.map(c => c[2]));
  const [across, down] = fit(right, data.height), scale = [across / right, down / data.height];
  canvas.width = across; canvas.height = down;
  canvas.style.maxWidth = Math.round(.48 * across) + "px";
  canvas.tabIndex = 0; canvas.setAttribute("role", "group");
  canvas.setAttribute("aria-label", part.name + ": " + part.cells.length
    + " tokens over the picture; arrow keys go through them");
  const p = { ...part, number, canvas, scale, at: -1 }; drawn.push(p); listen(p);
});
if (data.original) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  const image = document.createElement("img"); image.src = data.original;
  image.alt = "the picture, " + data.width + "×" + data.height + " pixels";
  const [across, down] = fit(data.width, data.height);
  image.style.maxWidth = Math.round(.48 * across) + "px";
  image.style.aspectRatio = across + "/" + down;
  caption.textContent = "picture"; figure.append(caption, image); panels.prepend(figure);
}
const said = document.getElementById("sentence");
const words = (data.sentence ? data.layers : []).map((word, k) => {
  const span = document.createElement("span"); span.textContent = word; said.append(span);
  span.addEventListener("mouseenter", () => { slider.value = k; draw(); }); return span; });
views.forEach((each, k) => choice.append(new Option(each.label, k)));
document.getElementById("choose").hidden = views.length < 2;
choice.addEventListener("change", () => take(+choice.value));
addEventListener("keydown", event => { if (event.key === "Escape") { held = null; draw(); } });
slider.addEventListener("input", draw); picture.onload = draw; picture.src = data.picture; take(0);
// A page that holds this one in a frame may give the frame the height that is needed.
new ResizeObserver(() => parent.postMessage(
  { explorerHeight: document.querySelector("main").scrollHeight + 24 }, "*")).observe(document.body);
