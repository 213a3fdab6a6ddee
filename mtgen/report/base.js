"use strict";
// Shared by all pages of mtgen: elements, the theme, and pictures in layers.
const SVG = "http://www.w3.org/2000/svg";
const number = value => value.toLocaleString("en-US");

/** An element with attributes and children; text is never parsed as markup. */
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "rect"].includes(name);
  const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Theme: automatic, light, dark; stored where the browser lets a local file store anything.
const theme = document.getElementById("theme"), themes = {"": "automatic", light: "light", dark: "dark"};
function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  theme.textContent = `Theme: ${themes[name]}`;
  try { localStorage.setItem("mtgen-theme", name); } catch { /* a local file may have no storage */ }
}
let kept = "";
try { kept = localStorage.getItem("mtgen-theme") || ""; } catch { /* as above */ }
setTheme(kept in themes ? kept : "");
theme.addEventListener("click", () => {
  const names = Object.keys(themes);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length]);
});

// Pictures: an atlas of images, an atlas of masks, and boxes; drawn cell by cell.
const loaded = new Map();
function picture(uri) {
  if (!loaded.has(uri)) {
    const image = new Image();
    image.src = uri;
    loaded.set(uri, image.decode().then(() => image));
  }
  return loaded.get(uri);
}

/** Draw a cell of an atlas with its mask and boxes, enlarged by a whole factor to at least `side` pixels. */
async function drawCell(canvas, frame, row, column, layers, side = 160) {
  const {width, height} = frame, scale = Math.max(1, Math.ceil(side / Math.max(width, height)));
  const [images, masks] = await Promise.all([picture(frame.images), frame.masks && layers.masks ? picture(frame.masks) : null]);
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const from = [column * width, row * height, width, height], to = [0, 0, canvas.width, canvas.height];
  context.drawImage(images, ...from, ...to);
  if (masks) {
    context.globalAlpha = 0.6;
    context.drawImage(masks, ...from, ...to);
    context.globalAlpha = 1;
  }
  for (const [x0, y0, x1, y1, kind] of layers.boxes && frame.boxes[column] ? frame.boxes[column][row] || [] : []) {
    for (const [color, line] of [["#000", 5], [frame.box_legend[kind] ? frame.box_legend[kind][1] : "#fff", 3]]) {
      context.strokeStyle = color;
      context.lineWidth = line;
      context.strokeRect(x0 * canvas.width, y0 * canvas.height, (x1 - x0) * canvas.width, (y1 - y0) * canvas.height);
    }
  }
}
