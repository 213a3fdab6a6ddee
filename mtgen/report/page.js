const data = JSON.parse(document.getElementById("data").textContent);
const INITIAL_CELLS = 24;  // cells of a grid that are shown before "all rows"
const short = value => value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4));

function drawTrack(list, frame, layers, all) {
  const rows = all ? frame.rows : Math.min(frame.rows, Math.max(4, Math.floor(INITIAL_CELLS / frame.panels.length)));
  const items = [];
  for (let row = 0; row < rows; row++) {
    const caption = frame.captions[row] || "", mark = frame.marks[row] || "";
    const strip = make("div", {class: "row"});
    frame.panels.forEach((panel, column) => {
      const label = [panel, caption, mark].filter(Boolean).join(", ");
      const canvas = make("canvas", {role: "img", "aria-label": label, title: label, width: frame.width, height: frame.height});
      drawCell(canvas, frame, row, column, layers);
      strip.append(canvas);
    });
    const item = make("li", {}, strip);
    if (caption) {
      const words = make("p", {class: mark, title: caption}, caption);
      item.append(words);
      words.style.maxWidth = `calc(${Math.min(frame.panels.length, 3)} * var(--size))`;
    }
    items.push(item);
  }
  list.replaceChildren(...items);
}

function legend(frame) {
  const entries = frame.mask_legend.length ? frame.mask_legend : frame.boxes.some(Boolean) ? frame.box_legend : [];
  const list = make("ul", {class: "legend", "aria-label": "Colors"});
  for (const [name, color] of entries.slice(0, 30)) {
    if (!color) continue;
    const chip = make("i");
    chip.style.background = color;
    list.append(make("li", {}, chip, name));
  }
  return list;
}

for (const bar of document.querySelectorAll("[data-positions]")) {
  const section = bar.parentElement, slider = bar.querySelector("input[type=range]"), shown = bar.querySelector("output");
  const figures = [...section.querySelectorAll(".pictures")].map(figure => {
    const tracks = data[figure.dataset.block].tracks.map(({label, frames}) => {
      const list = make("ul", {class: "cells"}), note = make("p", {class: "quiet"});
      return {label, frames, list, note};
    });
    const first = tracks[0].frames[0];
    const panels = first.panels.length > 1 ? ` ${first.panels.join(" | ")}` : "";
    figure.querySelector("figcaption").append(make("span", {class: "quiet"}, panels));
    const holder = make("div", {class: "tracks"});
    for (const track of tracks) holder.append(make("div", {}, ...(track.label ? [make("p", {class: "note"}, track.label)] : []), track.list));
    figure.append(legend(first), holder);
    return tracks;
  });
  const positions = [...new Set(figures.flat().flatMap(track => track.frames.map(frame => frame.at)))].sort((a, b) => a - b);
  const boxes = [...bar.querySelectorAll("[data-layer]")], all = bar.querySelector("[data-all]");
  const frames = figures.flat().flatMap(track => track.frames);
  const available = {masks: frames.some(frame => frame.masks), boxes: frames.some(frame => frame.boxes.some(Boolean))};
  boxes.forEach(box => { box.parentElement.hidden = !available[box.dataset.layer]; });
  let everything = false;
  function draw() {
    const at = positions[slider.value], layers = Object.fromEntries(boxes.map(box => [box.dataset.layer, box.checked]));
    shown.textContent = number(at);
    slider.setAttribute("aria-valuetext", `after ${number(at)} images`);
    for (const {frames, list} of figures.flat()) {
      // without a picture at this position: the last one before it, or the first
      drawTrack(list, frames.findLast(frame => frame.at <= at) || frames[0], layers, everything);
    }
  }
  slider.hidden = positions.length < 2;
  slider.max = positions.length - 1;
  slider.value = positions.length - 1;
  slider.addEventListener("input", draw);
  boxes.forEach(box => box.addEventListener("change", draw));
  all.setAttribute("aria-pressed", "false");
  all.addEventListener("click", () => {
    everything = !everything;
    all.textContent = everything ? "fewer rows" : "all rows";
    all.setAttribute("aria-pressed", String(everything));
    draw();
  });
  draw();
}

// Curves: one small chart per number, one line per run; pointer and arrow keys show values.
const W = 280, H = 132, LEFT = 4, RIGHT = 4, TOP = 8, BOTTOM = 16;
function drawChart(chart, labels, log) {
  const lines = chart.lines.map(({x, y}) => x.map((at, i) => [at, y[i]]).filter(([, value]) => !log || value > 0));
  const points = lines.flat(), title = chart.name;
  const output = make("output"), holder = make("div", {class: "chart"}, make("p", {}, make("span", {title}, title), output));
  if (!points.length) {
    output.textContent = "no positive values";
    return holder;
  }
  const value = y => log ? Math.log10(y) : y;
  const xs = points.map(point => point[0]), ys = points.map(point => value(point[1]));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const constant = y0 === y1;
  if (constant) [y0, y1] = [y0 - (Math.abs(y0) || 1) * 0.1, y1 + (Math.abs(y1) || 1) * 0.1];
  const px = x => x1 === x0 ? W / 2 : LEFT + (x - x0) / (x1 - x0) * (W - LEFT - RIGHT);
  const py = y => H - BOTTOM - (value(y) - y0) / (y1 - y0) * (H - TOP - BOTTOM);
  const text = points.length > 1 ? `from ${number(x0)} to ${number(x1)} images; use the arrow keys to read values` : `at ${number(x0)} images`;
  const svg = make("svg", {viewBox: `0 0 ${W} ${H}`, tabindex: "0", role: "img", "aria-label": `${title}, ${text}`});
  for (const y of [TOP, (H - BOTTOM + TOP) / 2, H - BOTTOM]) svg.append(make("line", {class: "axis", x1: 0, x2: W, y1: y, y2: y}));
  const real = y => log ? 10 ** y : y;
  if (x0 === x1) svg.append(make("text", {x: W / 2, y: H - 4, "text-anchor": "middle"}, number(x0)));
  else svg.append(make("text", {x: 2, y: H - 4}, number(x0)), make("text", {x: W - 2, y: H - 4, "text-anchor": "end"}, number(x1)));
  lines.forEach((line, i) => {
    if (!line.length) return;
    const dot = line.length === 1 ? "h0.01" : "";
    const path = make("path", {d: "M" + line.map(([x, y]) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("L") + dot});
    path.style.stroke = `var(--s${i % 6})`;
    if (dot) { path.style.strokeWidth = "6"; path.style.strokeLinecap = "round"; }
    svg.append(path);
  });
  if (!constant) svg.append(make("text", {x: 2, y: TOP + 9}, short(real(y1))), make("text", {x: 2, y: H - BOTTOM - 3}, short(real(y0))));
  const cursor = make("line", {class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden"});
  svg.append(cursor);
  const steps = [...new Set(xs)].sort((a, b) => a - b);
  let at = steps.length - 1;
  const said = step => lines.map((line, i) => {
    const found = line.findLast(([x]) => x <= step);
    return found ? (labels.length > 1 ? `${i + 1}: ` : "") + short(found[1]) : "";
  }).filter(Boolean).join("  ");
  function show(index) {
    at = Math.max(0, Math.min(steps.length - 1, index));
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", px(steps[at]));
    cursor.setAttribute("x2", px(steps[at]));
    output.textContent = `${said(steps[at])} at ${number(steps[at])}`;
  }
  function rest() {
    at = steps.length - 1;
    cursor.setAttribute("visibility", "hidden");
    output.textContent = said(steps[at]);
  }
  svg.addEventListener("pointermove", event => {
    const area = svg.getBoundingClientRect(), x = (event.clientX - area.left) / area.width * W;
    show(steps.reduce((best, step, i) => Math.abs(px(step) - x) < Math.abs(px(steps[best]) - x) ? i : best, 0));
  });
  svg.addEventListener("pointerleave", rest);
  svg.addEventListener("blur", rest);
  svg.addEventListener("keydown", event => {
    const move = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1}[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(move);
  });
  rest();
  holder.append(svg);
  return holder;
}

for (const place of document.querySelectorAll(".curves")) {
  const {labels, groups, thinned} = data[place.dataset.block];
  const log = make("input", {type: "checkbox"}), tools = make("div", {class: "tools"}, make("label", {}, log, " log scale"));
  if (labels.length > 1) {
    const list = make("ul", {class: "legend"});
    labels.forEach((label, i) => {
      const chip = make("i");
      chip.style.background = `var(--s${i % 6})`;
      list.append(make("li", {}, chip, `${i + 1}: ${label}`));
    });
    tools.append(list);
  }
  if (thinned) tools.append(make("span", {class: "quiet"}, `${thinned} points per curve, evenly spaced`));
  place.append(tools);
  const redraws = groups.map(group => {
    const charts = make("div", {class: "charts"}), details = make("details", {}, make("summary", {}, `${group.name} (${group.charts.length})`), charts);
    const draw = () => { if (details.open) charts.replaceChildren(...group.charts.map(chart => drawChart(chart, labels, log.checked))); };
    details.open = group.open;
    details.addEventListener("toggle", draw);
    place.append(details);
    draw();
    return draw;
  });
  log.addEventListener("change", () => redraws.forEach(redraw => redraw()));
}

// Heat maps: one strip per pair of tasks.
function signed(value) {
  const text = value.toFixed(2);
  return Number(text) === 0 ? "0.00" : (value > 0 ? "+" : "") + text;
}

for (const figure of document.querySelectorAll(".heat")) {
  const {positions, rows} = data[figure.dataset.block];
  const strips = make("div", {class: "strip"}), readout = make("output");
  for (const [name, values] of rows) {
    const known = values.filter(value => value !== null), last = known.length ? known[known.length - 1] : null;
    const svg = make("svg", {viewBox: `0 0 ${values.length} 1`, preserveAspectRatio: "none", role: "img",
      "aria-label": `${name}: last cosine ${last === null ? "unknown" : last.toFixed(2)}`});
    values.forEach((value, i) => {
      if (value === null) return;
      const rect = make("rect", {x: i, y: 0, width: 1.02, height: 1}), percent = Math.min(100, 100 * Math.sqrt(Math.abs(value)));
      rect.style.fill = `color-mix(in oklab, var(${value > 0 ? "--agree" : "--against"}) ${percent.toFixed(0)}%, var(--card))`;
      svg.append(rect);
    });
    svg.addEventListener("pointermove", event => {
      const area = svg.getBoundingClientRect(), i = Math.min(values.length - 1, Math.floor((event.clientX - area.left) / area.width * values.length));
      readout.textContent = values[i] === null ? "" : `${name}: ${values[i].toFixed(3)} at ${number(positions[i])} images`;
    });
    svg.addEventListener("pointerleave", () => { readout.textContent = ""; });
    strips.append(make("span", {title: name}, name), svg, make("b", {}, last === null ? "-" : signed(last)));
  }
  const ends = [`${number(positions[0])} images`, `${number(positions[positions.length - 1])}`];
  figure.append(strips, make("div", {class: "foot"}, make("span", {}, ends[0]), readout, make("span", {}, ends[1])));
}
