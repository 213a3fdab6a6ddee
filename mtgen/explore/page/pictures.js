// Pictures with masks and boxes that can be hidden, and the dialog with the details of one.
import {button} from "./controls.js";

export const layers = {masks: true, boxes: true};
const shown = new Set();  // pictures on the page, which are redrawn when a layer is switched

/** A canvas with one picture, which follows the layer switches. */
export function pictureCanvas(frame, label, side = 256) {
  const canvas = make("canvas", {role: "img", "aria-label": label, width: frame.width, height: frame.height});
  const entry = {canvas, frame, side};
  shown.add(entry);
  drawCell(canvas, frame, 0, 0, layers, side);
  canvas.reuse = other => {
    entry.frame = other;
    drawCell(canvas, other, 0, 0, layers, side);
  };
  return canvas;
}

export function redraw() {
  for (const entry of shown) {
    if (entry.canvas.isConnected) drawCell(entry.canvas, entry.frame, 0, 0, layers, entry.side);
    else shown.delete(entry);
  }
}

/** Free the decoded pictures that are no longer on the page. */
export function dropUnused() {
  loaded.clear();
  for (const entry of shown) if (!entry.canvas.isConnected) shown.delete(entry);
}

/** Fill a list with pictures, each a button that opens its details; captions are shown if they differ. */
export function grid(frames, detail, list) {
  const several = new Set(frames.map(frame => frame.caption)).size > 1;
  list.replaceChildren(...frames.map((frame, i) => {
    const caption = frame.caption || "", position = `image ${i + 1} of ${frames.length}`;
    const canvas = pictureCanvas(frame, caption ? `${caption}, ${position}` : position);
    const opener = button(canvas, {class: "cell", title: caption ? `${caption}: show details` : "Show details"});
    opener.addEventListener("click", () => detail(frame));
    return make("li", {}, opener, ...(several && caption ? [make("p", {title: caption}, caption)] : []));
  }));
  return list;
}

/** Open the details of a picture; `actions` are [label, function of the picture] pairs. */
export function showDetail(frame, actions) {
  const dialog = document.getElementById("detail"), close = button("×", {class: "plain", "aria-label": "Close"});
  const buttons = actions.map(([label, act]) => {
    const choice = button(label);
    choice.addEventListener("click", () => {
      dialog.close();
      act(frame);
    });
    return choice;
  });
  const download = `${frame.caption || "generated"}.png`;
  const save = make("a", {href: frame.images, download, class: "button"}, "Save PNG");
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(
    make("div", {class: "top"}, make("b", {}, frame.caption || "Image"), close),
    pictureCanvas(frame, frame.caption || "image", 768),
    make("p", {class: "quiet"}, factsOf(frame)),
    make("div", {class: "tools"}, ...buttons, save),
  );
  dialog.showModal();
}

function factsOf(frame) {
  const boxes = frame.boxes[0][0].map(([, , , , kind, score]) => `${frame.box_legend[kind][0]} ${score.toFixed(2)}`);
  return `${frame.width} × ${frame.height} pixels${boxes.length ? ` · boxes: ${boxes.join(", ")}` : ""}`;
}

document.getElementById("detail").addEventListener("click", event => {
  if (event.target === event.currentTarget) event.currentTarget.close();  // the backdrop
});
