// The layout editor: mask classes painted with a brush, boxes drawn with the pointer, or a mask from a file.
import {button, fileInput, link} from "./controls.js";
import {fileMessage, post} from "./server.js";

const ANYTHING = 255, BACKGROUND = "#3c4347";
const SMALLEST_SIDE = 320;  // pixels of the canvas: a smaller layout is enlarged by a whole factor
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

const clamp = (value, most) => Math.max(0, Math.min(most, value));

/**
 * The control of a prompt's layout: `prompt.mask` is one class per pixel or null, `prompt.boxes` a list;
 * `prompt.tool` says which of them is used.
 */
export function layoutControl(about, change, fail) {
  const {width, height} = about, scale = Math.max(1, Math.ceil(SMALLEST_SIDE / Math.max(width, height)));
  const tools = ["layout", "boxes"].filter(name => about.conditions.includes(name));
  const canvas = make("canvas", {
    class: "paint", width: width * scale, height: height * scale, tabindex: "0", role: "img",
    "aria-label": "Layout: paint with the pointer, or move with the arrow keys and paint with the space bar",
  });
  const small = make("canvas", {width, height});
  const palette = make("div", {class: "chips palette", role: "group", "aria-label": "Class of the brush"});
  const side = Math.min(width, height);
  const most = Math.max(4, Math.round(side / 4)), usual = Math.max(2, Math.round(side / 12));
  const size = make("input", {type: "range", min: "1", max: String(most), value: String(usual)});
  const brush = make("label", {class: "line"}, "Brush ", size), clear = link("clear");
  const open = button("Open", {title: "Open a mask: a PNG whose values are mask classes"});
  const kinds = make("div", {class: "segments", role: "group", "aria-label": "Kind of layout"});
  const input = fileInput("layout-file", "image/png", open, async file => {
    prompt.mask = Uint8Array.from((await post("layout", {file: await fileMessage(file, about.limits.file)})).mask);
    show(prompt);
    change();
  }, fail);
  const bar = make("div", {class: "tools"}, brush, open, clear);
  const element = make("div", {class: "control"}, kinds, canvas, palette, bar, input);
  const background = about.mask_classes.findIndex(name => name.toLowerCase() === "background");
  const chosen = {layout: Math.max(0, about.mask_classes.findIndex((_, i) => i !== background)), boxes: 0};
  let prompt = null, drag = null, cursor = [width >> 1, height >> 1], keyboard = false;

  function colorOf(kind) {
    if (prompt.tool === "boxes") return about.legend.boxes[kind][1];
    return kind === ANYTHING ? "" : about.legend.masks[kind][1] || BACKGROUND;
  }

  function show(other) {
    prompt = other;
    prompt.tool = tools.includes(prompt.tool) ? prompt.tool : tools[0];
    const masks = prompt.tool === "layout";
    kinds.hidden = tools.length < 2;
    kinds.replaceChildren(...tools.map(toolButton));
    brush.hidden = open.hidden = !masks;
    const entries = (masks ? about.mask_classes : about.classes).map((name, i) => [i, name]);
    if (masks) entries.push([ANYTHING, "anything"]);
    palette.replaceChildren(...entries.map(([kind, name]) => colorButton(kind, name)));
    clear.hidden = !(masks ? prompt.mask : prompt.boxes.length);
    draw();
  }

  function toolButton(name) {
    const choice = button(name === "layout" ? "Mask" : "Boxes", {"aria-pressed": String(name === prompt.tool)});
    choice.addEventListener("click", () => {
      prompt.tool = name;
      show(prompt);
      if (prompt.mask || prompt.boxes.length) change();
    });
    return choice;
  }

  function colorButton(kind, name) {
    const pressed = String(kind === chosen[prompt.tool]), chip = make("i");
    const choice = button(name, {class: "chip", "aria-pressed": pressed});
    choice.prepend(chip);
    chip.style.background = colorOf(kind) || "none";
    if (kind === ANYTHING) chip.className = "checked";
    choice.addEventListener("click", () => { chosen[prompt.tool] = kind; show(prompt); });
    return choice;
  }

  function draw() {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = false;
    if (prompt.tool === "layout" && prompt.mask) drawMask(context);
    if (prompt.tool === "boxes") for (const box of [...prompt.boxes, ...(drag ? [drag] : [])]) drawBox(context, box);
    if (keyboard && prompt.tool === "layout") {
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.strokeRect(cursor[0] * scale, cursor[1] * scale, scale, scale);
    }
  }

  function drawMask(context) {
    const inner = small.getContext("2d");
    inner.clearRect(0, 0, width, height);
    prompt.mask.forEach((kind, at) => {
      if (kind === ANYTHING) return;
      inner.fillStyle = colorOf(kind);
      inner.fillRect(at % width, Math.floor(at / width), 1, 1);
    });
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  }

  function drawBox(context, {x0, y0, x1, y1, name}) {
    const {width, height} = canvas, area = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height];
    context.globalAlpha = 0.25;
    context.fillStyle = context.strokeStyle = about.legend.boxes[about.classes.indexOf(name)][1] || "#888";
    context.fillRect(...area);
    context.globalAlpha = 1;
    context.lineWidth = 4;
    context.strokeRect(...area);
  }

  /** Paint a disc; unpainted pixels are background, or anything if the run has no background class. */
  function dab(x, y) {
    prompt.mask ??= new Uint8Array(width * height).fill(background < 0 ? ANYTHING : background);
    const radius = size.value / 2, reach = Math.max(radius, 0.71);  // at least the pixel under the brush
    for (let row = Math.floor(y - radius); row <= y + radius; row++) {
      for (let column = Math.floor(x - radius); column <= x + radius; column++) {
        if (row < 0 || column < 0 || row >= height || column >= width) continue;
        if (Math.hypot(row + 0.5 - y, column + 0.5 - x) > reach) continue;
        prompt.mask[row * width + column] = chosen.layout;
      }
    }
  }

  /** Paint from one point to another, both as fractions of the sides. */
  function stroke([x0, y0], [x1, y1]) {
    const steps = Math.ceil(Math.hypot((x1 - x0) * width, (y1 - y0) * height)) || 1;
    for (let i = 1; i <= steps; i++) dab((x0 + (x1 - x0) * i / steps) * width, (y0 + (y1 - y0) * i / steps) * height);
  }

  /** Position of the pointer as fractions of the canvas's sides. */
  function place(event) {
    const area = canvas.getBoundingClientRect();
    return [clamp((event.clientX - area.left) / area.width, 1), clamp((event.clientY - area.top) / area.height, 1)];
  }

  let last = null;
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    keyboard = false;
    const [x, y] = last = place(event);
    if (prompt.tool === "boxes") drag = {x0: x, y0: y, x1: x, y1: y, from: [x, y], name: about.classes[chosen.boxes]};
    else dab(x * width, y * height);
    draw();
  });
  canvas.addEventListener("pointermove", event => {
    if (!last) return;
    const [x, y] = place(event);
    if (drag) {
      [drag.x0, drag.x1] = [Math.min(x, drag.from[0]), Math.max(x, drag.from[0])];
      [drag.y0, drag.y1] = [Math.min(y, drag.from[1]), Math.max(y, drag.from[1])];
    } else {
      stroke(last, [x, y]);
      change();
    }
    last = [x, y];
    draw();
  });
  function end() {
    if (!last) return;
    last = null;
    if (drag) {
      const {from, ...box} = drag;
      drag = null;
      if ((box.x1 - box.x0) * width >= 1 && (box.y1 - box.y0) * height >= 1) prompt.boxes = [...prompt.boxes, box];
    }
    show(prompt);
    change();
  }
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("keydown", event => {
    const step = ARROWS[event.key];
    if (prompt.tool !== "layout" || !(step || event.key === " ")) return;
    event.preventDefault();
    keyboard = true;
    if (step) cursor = [clamp(cursor[0] + step[0], width - 1), clamp(cursor[1] + step[1], height - 1)];
    else {
      dab(cursor[0] + 0.5, cursor[1] + 0.5);
      show(prompt);
      change();
    }
    draw();
  });
  clear.addEventListener("click", () => {
    if (prompt.tool === "layout") prompt.mask = null;
    else prompt.boxes = [];
    show(prompt);
    change();
  });
  return {element, show};
}
