// Pictures with masks and boxes that can be shown and hidden, and a closer look at one.

export const layers = {masks: true, boxes: true};
const shown = new Set();  // what is on the page, to be drawn again

/** A canvas with one picture; it follows the switches. */
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

/** Forget the decoded pictures that are no longer on the page. */
export function forget() {
  loaded.clear();
  for (const entry of shown) if (!entry.canvas.isConnected) shown.delete(entry);
}

/** A list of pictures, each a button that opens a closer look; what they are stands under them where that differs. */
export function grid(frames, look, list) {
  const several = new Set(frames.map(frame => frame.caption)).size > 1;
  list.replaceChildren(...frames.map((frame, i) => {
    const caption = frame.caption || "", label = [caption, `picture ${i + 1} of ${frames.length}`].filter(Boolean).join(", ");
    const button = make("button", {type: "button", class: "cell", title: caption ? `${caption}: a closer look` : "a closer look"}, pictureCanvas(frame, label));
    button.addEventListener("click", () => look(frame));
    return make("li", {}, button, ...(several && caption ? [make("p", {title: caption}, caption)] : []));
  }));
  return list;
}

/** A closer look at a picture, with what can be done with it: [label, what to do] pairs. */
export function closer(frame, actions) {
  const dialog = document.getElementById("closer"), close = make("button", {type: "button", class: "plain", "aria-label": "Close"}, "×");
  const buttons = actions.map(([label, act]) => {
    const button = make("button", {type: "button"}, label);
    button.addEventListener("click", () => {
      dialog.close();
      act(frame);
    });
    return button;
  });
  const save = make("a", {href: frame.images, download: `${frame.caption || "drawn"}.png`, class: "button"}, "Save PNG");
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(
    make("div", {class: "top"}, make("b", {}, frame.caption || "A closer look"), close),
    pictureCanvas(frame, frame.caption || "picture", 768),
    make("p", {class: "quiet"}, boxesInWords(frame)),
    make("div", {class: "tools"}, ...buttons, save),
  );
  dialog.showModal();
}

function boxesInWords(frame) {
  const boxes = frame.boxes[0][0].map(([, , , , kind, score]) => `${frame.box_legend[kind][0]} ${score.toFixed(2)}`);
  return [`${frame.width} × ${frame.height}`, boxes.length ? `boxes: ${boxes.join(", ")}` : ""].filter(Boolean).join(" · ");
}

document.getElementById("closer").addEventListener("click", event => {
  if (event.target === event.currentTarget) event.currentTarget.close();  // beside the picture
});
