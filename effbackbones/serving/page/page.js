"use strict";
const $ = (id) => document.getElementById(id);
let facts, file, picture, parts = {}, heat = null, asked = 0, limit = null;
const colour = (label) => `hsl(${(label * 137.5) % 360} 75% 50%)`;
const rgb = (label) => {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = colour(label);
  pen.fillRect(0, 0, 1, 1);
  return pen.getImageData(0, 0, 1, 1).data;
};
const kindOf = (part) => (part.predictions ? "cls" : part.boxes ? "det" : part.runs || part.masks ? "seg" : "other");
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
  $("least").hidden = Object.values(parts).every((part) => kindOf(part) === "cls");
  if (fresh) begin();
  boxes();
  show();
});

function begin() {
  const own = Object.values(parts).flatMap((part) => part.boxes ? [part.threshold] : part.masks ? part.thresholds : []);
  if (own.length) $("threshold").value = own[0]; // the model's own, until it is moved
  choices();
}

function choices() {
  $("task").replaceChildren(...Object.keys(parts).map((word) => new Option(word, word)));
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
  const fill = (label, start, count) => {
    const [r, g, b] = rgb(label);
    for (let at = start; at < start + count; at++) layer.data.set([r, g, b, 255], 4 * at);
  };
  if (part.runs) {
    for (let row = 0, at = 0; row < part.runs.length; at += part.runs[row + 1], row += 2)
      if (part.runs[row] !== 255 && part.classes[part.runs[row]] !== "background") fill(part.runs[row], at, part.runs[row + 1]);
  } else for (const one of part.masks) {
    let at = 0;
    one.runs.forEach((count, row) => { if (row % 2) fill(one.label, at, count); at += count; });
  }
  const small = document.createElement("canvas");
  [small.width, small.height] = [width, height];
  small.getContext("2d").putImageData(layer, 0, 0);
  pen.globalAlpha = Number($("opacity").value);
  pen.drawImage(small, 0, 0);
  pen.globalAlpha = 1;
}

function line(label, text, value) {
  const row = document.createElement("li"), key = document.createElement("i"), words = document.createElement("span"), bar = document.createElement("progress");
  key.style.background = colour(label);
  words.textContent = `${text} ${percent(value)}`;
  bar.value = value;
  bar.setAttribute("aria-label", text);
  row.append(key, words, bar);
  return row;
}

function show() {
  const canvas = $("canvas"), pen = canvas.getContext("2d"), [height, width] = Object.values(parts)[0].size, lines = [];
  [canvas.width, canvas.height] = [width, height];
  if (picture) pen.drawImage(picture, 0, 0, width, height);
  const thick = Math.max(1, Math.max(width, height) / 300);
  for (const part of Object.values(parts)) if (kindOf(part) === "seg") {
    paint(pen, part);
    for (const [name, share] of Object.entries(part.shares)) lines.push(line(part.classes.indexOf(name), `${name}, share of the pixels:`, share));
  }
  for (const part of Object.values(parts)) {
    if (kindOf(part) === "cls") for (const one of part.predictions.slice(0, most())) lines.push(line(one.label, !part.multilabel || part.there.includes(one.class) ? one.class : `${one.class} (not there)`, one.probability));
    if (kindOf(part) === "det") for (const one of part.boxes.filter((box) => box.score >= threshold()).slice(0, most())) {
      const [left, top, right, bottom] = one.box, text = `${one.class} ${percent(one.score)}`, size = 4 * thick + 7;
      pen.strokeStyle = pen.fillStyle = colour(one.label);
      pen.lineWidth = thick;
      pen.strokeRect(left, top, right - left, bottom - top);
      pen.font = `${size}px sans-serif`;
      pen.fillRect(left, Math.max(0, top - size), pen.measureText(text).width + 4, size);
      pen.fillStyle = "#000";
      pen.fillText(text, left + 2, Math.max(0, top - size) + size * 0.8);
      lines.push(line(one.label, one.class, one.score));
    }
  }
  if (heat) {
    pen.globalAlpha = Number($("opacity").value);
    pen.drawImage(heat, 0, 0, width, height);
    pen.globalAlpha = 1;
  }
  if (!lines.length) { const none = document.createElement("li"); none.textContent = "Nothing at this threshold."; lines.push(none); }
  $("found").replaceChildren(...lines);
  canvas.setAttribute("aria-label", `The image with what was found: ${lines.map((row) => row.textContent).join("; ")}`);
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

guarded("Loading.", async () => {
  facts = await (await fetch("/")).json();
  $("about").textContent = `${facts.task}: ${facts.backbone}, sees ${facts.image_size[1]} x ${facts.image_size[0]} pixels`;
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
