"use strict";
const $ = (id) => document.getElementById(id);
let facts, order = [], file, picture, parts = {}, heat = null, asked = 0, limit = null;
const colour = (name) => `hsl(${(order.indexOf(name) * 137.5) % 360} 75% 50%)`; // the same in all tasks
const rgb = (name) => {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = colour(name);
  pen.fillRect(0, 0, 1, 1);
  return pen.getImageData(0, 0, 1, 1).data;
};
const kindOf = (part) => (part.predictions ? "cls" : part.boxes ? "det" : part.runs || part.masks ? "seg" : "other");
const TASKS = { cls: "Classification", det: "Detection", seg: "Segmentation" };
const spoken = (word) => TASKS[word] || word;
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const threshold = () => Number($("threshold").value);
const most = () => Math.max(1, Number($("top").value) || 1);

async function ask(path) {
  const answer = await fetch(path, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
  const text = await answer.text();
  let found;
  try { found = JSON.parse(text); } catch { throw new Error(`the service answered ${answer.status} without a reason`); }
  if (!answer.ok) throw new Error(found.error);
  return [found, answer.headers];
}

async function guarded(saying, action) {
  const turn = ++asked;
  $("error").textContent = "";
  $("status").textContent = saying;
  try {
    await action(() => turn === asked);
    if (turn === asked) $("status").textContent = "Done.";
  } catch (error) {
    if (turn !== asked) return;
    $("status").textContent = "";
    $("error").textContent = error instanceof TypeError ? "The service cannot be reached; is it running?" : error.message;
  }
}

function take(blob) {
  file = blob;
  limit = null;
  return predict(true);
}

const predict = (fresh) => guarded("Predicting.", async (current) => {
  if (fresh) $("answer").hidden = true;
  const start = performance.now();
  const [found, headers] = await ask("predict" + (limit === null ? "" : `?threshold=${limit}`));
  const total = performance.now() - start;
  const seen = await createImageBitmap(file).catch(() => null);
  if (!current()) return;
  picture = seen;
  heat = null;
  $("heat").textContent = "";
  parts = found.size ? { [facts.task]: found } : found;
  const server = [...(headers.get("Server-Timing") || "").matchAll(/(\w+);dur=([\d.]+)/g)].map((one) => `${one[1]} ${one[2]} ms`);
  const [height, width] = Object.values(parts)[0].size;
  $("timing").textContent = `${width} x ${height} pixels; ${[...server, `total ${total.toFixed(1)} ms`].join(", ")}`;
  $("answer").hidden = false;
  const kinds = Object.values(parts).map(kindOf);
  $("least").hidden = kinds.every((kind) => kind === "cls");
  $("many").hidden = kinds.every((kind) => kind === "seg");
  if (fresh) begin();
  boxes();
  show();
});

function begin() {
  const all = Object.values(parts), boxed = all.find((part) => part.boxes), own = all.find((part) => part.masks || part.runs);
  // The model's own, until it is moved: of one class a pixel the second of two is there from a half on, of more each is the surest.
  if (boxed) $("threshold").value = boxed.threshold;
  else if (own) $("threshold").value = own.masks ? own.thresholds[0] : own.classes.length === 2 ? 0.5 : 0;
  choices();
}

function choices() {
  $("task").replaceChildren(...Object.keys(parts).map((word) => new Option(spoken(word), word)));
  $("of").hidden = Object.keys(parts).length < 2;
  classes();
}

function classes() {
  const names = Array.isArray(facts.classes) ? facts.classes : facts.classes[$("task").value];
  $("label").replaceChildren(new Option("the surest", ""), ...names.map((name, label) => new Option(name, label)));
  const levels = (facts.levels || {})[$("task").value] || [];
  $("where").hidden = levels.length < 2;
  $("level").replaceChildren(...levels.map((name, row) => new Option(row ? name : `${name}, the coarsest`, name)));
  boxes();
}

function boxes() {
  const found = (parts[$("task").value] || {}).boxes;
  $("at").hidden = !found;
  const rows = (found || []).filter((one) => one.score >= threshold()).slice(0, most());
  $("box").replaceChildren(new Option("anywhere", ""), ...rows.map((one, row) => new Option(`${row + 1}: ${one.class} ${percent(one.score)}`, JSON.stringify([one.label, one.box]))));
}

function paint(pen, part) {
  const [height, width] = part.size, layer = new ImageData(width, height);
  const known = new Map();
  const fill = (name, start, count) => {
    if (!known.has(name)) known.set(name, rgb(name));
    const [r, g, b] = known.get(name);
    for (let at = start; at < start + count; at++) layer.data.set([r, g, b, 255], 4 * at);
  };
  if (part.runs) {
    for (let row = 0, at = 0; row < part.runs.length; at += part.runs[row + 1], row += 2)
      if (part.runs[row] !== 255 && part.classes[part.runs[row]] !== "background") fill(part.classes[part.runs[row]], at, part.runs[row + 1]);
  } else for (const one of part.masks) {
    let at = 0;
    one.runs.forEach((count, row) => { if (row % 2) fill(part.classes[one.label], at, count); at += count; });
  }
  const small = document.createElement("canvas");
  [small.width, small.height] = [width, height];
  small.getContext("2d").putImageData(layer, 0, 0);
  pen.globalAlpha = Number($("opacity").value);
  pen.drawImage(small, 0, 0);
  pen.globalAlpha = 1;
}

function line(name, text, value) {
  const row = document.createElement("li"), key = document.createElement("i"), words = document.createElement("span"), bar = document.createElement("progress");
  if (name !== "background") key.style.background = colour(name);
  words.textContent = `${text} ${percent(value)}`;
  bar.value = value;
  bar.setAttribute("aria-label", text);
  row.append(key, words, bar);
  return row;
}

const found = (part) => part.boxes.filter((box) => box.score >= threshold()).slice(0, most());

function rows(part) {
  if (kindOf(part) === "seg") return Object.entries(part.shares).map(([name, share]) => line(name, name, share));
  if (kindOf(part) === "cls") return part.predictions.slice(0, most()).map((one) => line(one.class, !part.multilabel || part.there.includes(one.class) ? one.class : `${one.class} (not there)`, one.probability));
  return kindOf(part) === "det" ? found(part).map((one) => line(one.class, one.class, one.score)) : [];
}

function list(word, part, titled) {
  const section = document.createElement("section"), items = document.createElement("ul"), lines = rows(part);
  const title = [titled ? spoken(word) : "", kindOf(part) === "seg" ? "share of the pixels" : ""].filter(Boolean).join(", ");
  if (title) {
    const heading = document.createElement("h3");
    heading.textContent = title[0].toUpperCase() + title.slice(1);
    section.append(heading);
  }
  if (!lines.length) {
    const none = document.createElement("li");
    none.className = "none";
    none.textContent = kindOf(part) === "seg" ? "Nothing but background." : "Nothing at this threshold.";
    lines.push(none);
  }
  items.append(...lines);
  section.append(items);
  return section;
}

// Boxes, and above all of them their names, the surest first: beside one another where there is a place, else under those surer.
function frame(pen, ones, unit, width, height) {
  const size = (width / unit < 600 ? 11 : 14) * unit, high = 1.3 * size, placed = [];
  pen.lineWidth = 2 * unit;
  pen.font = `${size}px system-ui, sans-serif`;
  for (const one of [...ones].reverse()) {
    const [left, top, right, bottom] = one.box;
    pen.strokeStyle = colour(one.class);
    pen.strokeRect(left, top, right - left, bottom - top);
  }
  for (const one of ones) {
    const [left, top, , bottom] = one.box, text = `${one.class} ${percent(one.score)}`, wide = pen.measureText(text).width + 0.6 * size;
    const x = Math.max(0, Math.min(left - unit, width - wide));
    const places = [top - high, top, bottom - high, bottom].filter((y) => y >= 0 && y + high <= height);
    const free = places.find((y) => placed.every((other) => x + wide <= other.x || other.x + other.wide <= x || y + high <= other.y || other.y + high <= y));
    placed.push({ text, class: one.class, x, y: free ?? places[0] ?? Math.max(0, top), wide });
  }
  for (const one of placed.reverse()) {
    const [r, g, b] = rgb(one.class);
    pen.fillStyle = colour(one.class);
    pen.fillRect(one.x, one.y, one.wide, high);
    pen.fillStyle = 0.299 * r + 0.587 * g + 0.114 * b > 110 ? "#000" : "#fff";
    pen.fillText(one.text, one.x + 0.3 * size, one.y + size);
  }
}

function show() {
  const canvas = $("canvas"), pen = canvas.getContext("2d"), [height, width] = Object.values(parts)[0].size;
  // As many pixels as the screen shows: lines and letters are sharp, and as large on a phone as on a desk.
  const across = Math.min(canvas.parentElement.clientWidth, (0.8 * innerHeight * width) / height) || width, scale = (across * devicePixelRatio) / width;
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  pen.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
  if (picture) pen.drawImage(picture, 0, 0, width, height);
  for (const part of Object.values(parts)) if (kindOf(part) === "seg") paint(pen, part);
  for (const part of Object.values(parts)) if (kindOf(part) === "det") frame(pen, found(part), width / across, width, height);
  if (heat) {
    pen.globalAlpha = Number($("opacity").value);
    pen.drawImage(heat, 0, 0, width, height);
    pen.globalAlpha = 1;
  }
  const several = Object.keys(parts).length > 1;
  $("found").replaceChildren(...Object.entries(parts).map(([word, part]) => list(word, part, several)));
  const told = [...$("found").querySelectorAll("h3, li")].map((row) => row.textContent);
  canvas.setAttribute("aria-label", `The image with what was found: ${told.join("; ")}`);
  $("shown").textContent = threshold().toFixed(2);
}

const explain = () => guarded("Explaining.", async (current) => {
  const query = new URLSearchParams({ task: $("task").value });
  if (!$("where").hidden) query.set("level", $("level").value);
  if ($("label").value !== "") query.set("label", $("label").value);
  if (!$("at").hidden && $("box").value) {
    const [label, box] = JSON.parse($("box").value);
    query.set("label", label);
    query.set("box", box.join(","));
  }
  const [found] = await ask(`explain?${query}`);
  const image = new Image();
  image.src = `data:image/png;base64,${found.heat}`;
  await image.decode();
  if (!current()) return;
  heat = image;
  show();
  $("heat").textContent = `Heat: what speaks for ${found.name}, seen at ${found.level}`;
});

$("file").addEventListener("change", (event) => event.target.files[0] && take(event.target.files[0]));
document.addEventListener("paste", (event) => { const one = [...event.clipboardData.files][0]; if (one) take(one); });
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]); });
for (const id of ["threshold", "top", "opacity"]) $(id).addEventListener("input", () => { if (id !== "opacity") boxes(); show(); });
$("threshold").addEventListener("change", () => {
  const only = Object.values(parts).every((part) => kindOf(part) === "seg");
  if (only) { limit = threshold(); predict(false); }
});
$("task").addEventListener("change", classes);
$("explain").addEventListener("click", explain);
$("clear").addEventListener("click", () => { heat = null; $("heat").textContent = ""; show(); });
addEventListener("resize", () => { if (!$("answer").hidden) show(); });

guarded("Loading.", async () => {
  facts = await (await fetch("/")).json();
  const tasks = Array.isArray(facts.classes) ? [facts.task] : Object.keys(facts.classes);
  order = [...new Set(Object.values(facts.classes).flat())];
  $("about").textContent = `${tasks.map((word, row) => (row ? spoken(word).toLowerCase() : spoken(word))).join(", ")} by ${facts.backbone}, which sees images at ${facts.image_size[1]} x ${facts.image_size[0]} pixels`;
  const { samples } = await (await fetch("demo/samples")).json();
  samples.forEach((text, number) => {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button";
    image.src = `data:image/png;base64,${text}`;
    image.alt = `Sample ${number + 1}`;
    button.append(image);
    button.addEventListener("click", () => take(new Blob([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], { type: "image/png" })));
    $("samples").append(button);
  });
});
