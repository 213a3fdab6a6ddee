// The layout editor: mask classes painted with a brush, boxes drawn with the pointer, or a mask from a file.
import {fileMessage, post} from "./server.js";

const ANYTHING = 255, BACKGROUND = "#3c4347";

/** The control: `prompt.mask` is one class per pixel or null, `prompt.boxes` a list; `prompt.tool` says which is used. */
export function layoutControl(about, change, fail) {
  const {width, height} = about, scale = Math.max(1, Math.ceil(320 / Math.max(width, height)));
  const tools = ["layout", "boxes"].filter(name => about.conditions.includes(name));
  const canvas = make("canvas", {class: "paint", width: width * scale, height: height * scale, tabindex: "0", role: "img",
    "aria-label": "Layout: paint with the pointer, or move with the arrow keys and paint with the space bar"});
  const small = make("canvas", {width, height}), palette = make("div", {class: "chips palette", role: "group", "aria-label": "Class of the brush"});
  const side = Math.min(width, height), [most, usual] = [Math.max(4, Math.round(side / 4)), Math.max(2, Math.round(side / 12))];
  const size = make("input", {type: "range", min: "1", max: String(most), value: String(usual)});
  const brush = make("label", {class: "line"}, "Brush ", size), clear = make("button", {type: "button", class: "plain"}, "clear");
  const choose = make("input", {type: "file", accept: "image/png", class: "sr", id: "layout-file", tabindex: "-1"});
  const chooser = make("button", {type: "button", title: "Open a mask: a PNG whose values are mask classes"}, "Open");
  const kinds = make("div", {class: "segments", role: "group", "aria-label": "Kind of layout"});
  const holder = make("div", {class: "control"}, kinds, canvas, palette, make("div", {class: "tools"}, brush, chooser, clear), choose);
  const background = about.mask_classes.findIndex(name => name.toLowerCase() === "background");
  const color = {layout: Math.max(0, about.mask_classes.findIndex((_, i) => i !== background)), boxes: 0};
  let prompt = null, drag = null, cursor = [width >> 1, height >> 1], keyboard = false;

  const colorOf = kind => prompt.tool === "boxes" ? about.legend.boxes[kind][1] : kind === ANYTHING ? "" : about.legend.masks[kind][1] || BACKGROUND;

  function show(other) {
    prompt = other;
    prompt.tool = tools.includes(prompt.tool) ? prompt.tool : tools[0];
    const masks = prompt.tool === "layout", names = masks ? about.mask_classes : about.classes;
    kinds.hidden = tools.length < 2;
    kinds.replaceChildren(...tools.map(name => {
      const button = make("button", {type: "button", "aria-pressed": String(name === prompt.tool)}, name === "layout" ? "Mask" : "Boxes");
      button.addEventListener("click", () => { prompt.tool = name; show(prompt); if (prompt.mask || prompt.boxes.length) change(); });
      return button;
    }));
    brush.hidden = chooser.hidden = !masks;
    const entries = names.map((name, i) => [i, name]);
    if (masks) entries.push([ANYTHING, "anything"]);
    palette.replaceChildren(...entries.map(([kind, name]) => {
      const chip = make("i"), button = make("button", {type: "button", class: "chip", "aria-pressed": String(kind === color[prompt.tool])}, chip, name);
      chip.style.background = colorOf(kind) || "none";
      if (kind === ANYTHING) chip.className = "checked";
      button.addEventListener("click", () => { color[prompt.tool] = kind; show(prompt); });
      return button;
    }));
    clear.hidden = !(masks ? prompt.mask : prompt.boxes.length);
    draw();
  }

  function draw() {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = false;
    if (prompt.tool === "layout" && prompt.mask) {
      const inner = small.getContext("2d");
      inner.clearRect(0, 0, width, height);
      prompt.mask.forEach((kind, at) => {
        if (kind === ANYTHING) return;
        inner.fillStyle = colorOf(kind);
        inner.fillRect(at % width, Math.floor(at / width), 1, 1);
      });
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
    }
    const boxes = prompt.tool === "boxes" ? [...prompt.boxes, ...(drag ? [drag] : [])] : [];
    for (const {x0, y0, x1, y1, name} of boxes) {
      const kind = about.classes.indexOf(name), place = [x0 * canvas.width, y0 * canvas.height, (x1 - x0) * canvas.width, (y1 - y0) * canvas.height];
      context.globalAlpha = 0.25;
      context.fillStyle = context.strokeStyle = about.legend.boxes[kind][1] || "#888";
      context.fillRect(...place);
      context.globalAlpha = 1;
      context.lineWidth = 4;
      context.strokeRect(...place);
    }
    if (keyboard && prompt.tool === "layout") {
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.strokeRect(cursor[0] * scale, cursor[1] * scale, scale, scale);
    }
  }

  /** Paint a disc; unpainted pixels are background, or anything if the run has no background class. */
  function dab(x, y) {
    prompt.mask ??= new Uint8Array(width * height).fill(background < 0 ? ANYTHING : background);
    const radius = size.value / 2;
    for (let row = Math.floor(y - radius); row <= y + radius; row++) {
      for (let column = Math.floor(x - radius); column <= x + radius; column++) {
        if (row < 0 || column < 0 || row >= height || column >= width) continue;
        if (Math.hypot(row + 0.5 - y, column + 0.5 - x) <= Math.max(radius, 0.71)) prompt.mask[row * width + column] = color.layout;
      }
    }
  }

  function place(event) {
    const area = canvas.getBoundingClientRect(), clamp = value => Math.max(0, Math.min(1, value));
    return [clamp((event.clientX - area.left) / area.width), clamp((event.clientY - area.top) / area.height)];
  }

  let last = null;
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    keyboard = false;
    const [x, y] = last = place(event);
    if (prompt.tool === "boxes") drag = {x0: x, y0: y, x1: x, y1: y, from: [x, y], name: about.classes[color.boxes]};
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
      const steps = Math.ceil(Math.hypot((x - last[0]) * width, (y - last[1]) * height)) || 1;
      for (let i = 1; i <= steps; i++) dab((last[0] + (x - last[0]) * i / steps) * width, (last[1] + (y - last[1]) * i / steps) * height);
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
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (prompt.tool !== "layout" || !(step || event.key === " ")) return;
    event.preventDefault();
    keyboard = true;
    if (step) cursor = [Math.max(0, Math.min(width - 1, cursor[0] + step[0])), Math.max(0, Math.min(height - 1, cursor[1] + step[1]))];
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
  chooser.addEventListener("click", () => choose.click());
  choose.addEventListener("change", async () => {
    const [file] = choose.files;
    choose.value = "";
    if (!file) return;
    try {
      prompt.mask = Uint8Array.from((await post("layout", {file: await fileMessage(file, about.limits.file)})).mask);
      show(prompt);
      change();
    } catch (error) {
      fail(error);
    }
  });
  return {element: holder, show};
}
