const $ = id => document.getElementById(id), plane = $("plane"), thumbnail = $("thumbnail");
const g = plane.getContext("2d"), t = thumbnail.getContext("2d"), slider = $("slider");
const images = data.pictures.map(address => {
  const image = new Image(); image.onload = () => draw(); image.src = address; return image; });
let at = -1, held = -1, view = data.colours[0];
const all = () => data.together && view.name === "layer";
const shown = () => data.layer.map((k, i) => i)
  .filter(i => data.x[i] !== null && (all() || data.layer[i] == +slider.value));
// The plane of a layer fills the canvas; one plane for all layers keeps its scale.
function scale() {
  const own = data.together ? data.x.map((v, i) => i).filter(i => data.x[i] !== null) : shown();
  const ends = values => [Math.min(...values), Math.max(...values)];
  const [x0, x1] = ends(own.map(i => data.x[i])), [y0, y1] = ends(own.map(i => data.y[i]));
  return i => [40 + 920 * (data.x[i] - x0) / (x1 - x0 || 1),
               960 - 920 * (data.y[i] - y0) / (y1 - y0 || 1)];
}
function draw() {
  const place = scale();
  g.fillStyle = "#fff"; g.fillRect(0, 0, 1000, 1000);
  g.strokeStyle = "#bbb"; g.strokeRect(1, 1, 998, 998);
  for (const i of shown()) {
    const [x, y] = place(i);
    g.globalAlpha = .75; g.fillStyle = view.of[i];
    g.beginPath(); g.arc(x, y, 9, 0, 7); g.fill(); g.globalAlpha = 1;
    if (i == at || i == held) {
      g.lineWidth = 4; g.strokeStyle = "#000"; g.beginPath(); g.arc(x, y, 13, 0, 7); g.stroke();
    }
  }
  $("layer").textContent = all() ? "all layers" : data.layers[+slider.value];
  slider.setAttribute("aria-valuetext", data.layers[+slider.value]);
  tell(at >= 0 ? at : held);
}
function tell(i) {
  t.fillStyle = "#fff"; t.fillRect(0, 0, 480, 480);
  if (i < 0) {
    $("chosen").textContent = "Point at a token, or go through them with the arrow keys; a click keeps one.";
    thumbnail.setAttribute("aria-label", "no token is pointed at"); return;
  }
  const said = data.colours.map(c => c.name + ": " + c.says[i]).join(" · ");
  $("chosen").textContent = data.about[i] + " · " + said;
  thumbnail.setAttribute("aria-label", "what the token is of: " + data.about[i]);
  const k = data.picture[i], box = data.box[i];
  if (k < 0) {
    t.fillStyle = "#222"; t.font = "32px system-ui, sans-serif"; t.textAlign = "center";
    t.fillText(data.about[i].split(": ").slice(1).join(": ") || "no picture", 240, 250, 460); return;
  }
  const [width, height] = data.sizes[k], image = images[k];
  const s = 230 / Math.max(width, height), w = width * s, h = height * s;
  t.drawImage(image, 0, 0, w, h);
  t.strokeStyle = "#bbb"; t.lineWidth = 1; t.strokeRect(.5, .5, w, h);
  if (!box) return;
  const outline = ink => { t.strokeStyle = ink;
    t.strokeRect(box[0] * s, box[1] * s, (box[2] - box[0]) * s, (box[3] - box[1]) * s); };
  t.lineWidth = 5; outline("#fff"); t.lineWidth = 3; outline("#D55E00");
  // The patch alone, enlarged, below.
  const share = image.naturalWidth / width, z = 230 / Math.max(box[2] - box[0], box[3] - box[1]);
  t.drawImage(image, box[0] * share, box[1] * share, (box[2] - box[0]) * share,
    (box[3] - box[1]) * share, 0, 245, (box[2] - box[0]) * z, (box[3] - box[1]) * z);
  t.strokeStyle = "#D55E00"; t.strokeRect(0, 245, (box[2] - box[0]) * z, (box[3] - box[1]) * z);
}
function nearest(event) {
  const box = plane.getBoundingClientRect(), place = scale();
  const x = (event.clientX - box.left) / box.width * 1000;
  const y = (event.clientY - box.top) / box.height * 1000;
  let best = -1, least = 24;
  for (const i of shown()) {
    const [px, py] = place(i), far = Math.hypot(px - x, py - y);
    if (far < least) { least = far; best = i; }
  }
  return best;
}
plane.addEventListener("pointermove", event => { at = nearest(event); draw(); });
plane.addEventListener("pointerleave", () => { at = -1; draw(); });
plane.addEventListener("click", event => { const i = nearest(event); held = i == held ? -1 : i; draw(); });
plane.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const here = shown(), k = here.indexOf(held);
  held = here[k < 0 ? 0 : (k + step + here.length) % here.length]; at = -1; draw();
});
addEventListener("keydown", event => { if (event.key === "Escape") { held = at = -1; draw(); } });
function take(k) {
  view = data.colours[k];
  $("legend").replaceChildren(...view.legend.map(([colour, name]) => {
    const span = document.createElement("span"), dot = document.createElement("b");
    dot.textContent = "● "; dot.style.color = colour; span.append(dot, name + "  "); return span; }));
  $("slide").hidden = data.layers.length < 2 || all();
  draw();
}
data.colours.forEach((each, k) => $("choice").append(new Option(each.name, k)));
$("choice").addEventListener("change", event => take(+event.target.value));
slider.max = data.layers.length - 1;
slider.addEventListener("input", () => { at = -1;
  // A token that is kept is the same one at the next layer.
  const other = held < 0 ? -1 : data.layer.findIndex((k, i) => k == +slider.value
    && data.token[i] === data.token[held]);
  held = other; draw(); });
plane.setAttribute("aria-label", data.x.length + " tokens in a plane; arrow keys go through them");
take(0);
new ResizeObserver(() => parent.postMessage(
  { explorerHeight: document.querySelector("main").scrollHeight + 24 }, "*")).observe(document.body);
