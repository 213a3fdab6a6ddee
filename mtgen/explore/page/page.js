// The page: facts about the run, the three views, and the prompt of each.
import {button} from "./controls.js";
import {interpolateView, FRAMES} from "./interpolate.js";
import {dropUnused, grid, layers, redraw, showDetail} from "./pictures.js";
import {predictView} from "./predict.js";
import {emptyPrompt, promptInWords, promptMessage, promptPanel} from "./prompt.js";
import {get, oneAtATime, pictureMessage, post} from "./server.js";

const element = id => document.getElementById(id), views = ["generate", "interpolate", "predict"];
const DELAY = 120;  // milliseconds from a change to the request
const POLL = 20000;  // milliseconds between two checks for a newer checkpoint
const MAX_COLORS = 24;  // in the legend
const PREDICTING = ["classification", "tagging", "segmentation", "detection", "reconstruction", "translation"];

function fail(error) {
  element("error").textContent = error.message;
  element("error").hidden = false;
  element("status").textContent = "";
}
function done(of, seconds, what) {
  element("error").hidden = true;
  if (of === view) element("status").textContent = `${what} in ${seconds.toFixed(2)} s`;
}

let about;
try {
  about = await get("about");
} catch (error) {
  fail(error);
  throw error;
}

function showFacts() {
  const {run, images, total_images, width, height, channels, parameters, device, newer} = about;
  element("run").textContent = run;
  document.title = `${run} · mtgen explore`;
  element("facts").textContent = [
    `${number(images)} ${images < total_images ? `of ${number(total_images)} ` : ""}images seen`,
    `${width} × ${height} ${channels === 1 ? "gray" : "color"}`,
    `${(parameters / 1e6).toFixed(2)}M parameters`,
    device,
  ].join(" · ");
  element("reload").hidden = newer === null;
  element("reload").textContent = newer === null ? "" : `Load the newest checkpoint: ${number(newer)} images`;
}
showFacts();

// Prompts and settings
const prompts = {generate: emptyPrompt(), first: emptyPrompt(), last: emptyPrompt()};
const fewClasses = about.classes.length > 1 && about.classes.length <= 10;
const settings = {n: fewClasses ? 2 * about.classes.length : 16, truncation: 1};
let view = "generate", end = "first", generated = [];

const panel = promptPanel(about, changed, fail), form = element("panel");
const ends = make("div", {class: "segments ends", role: "group", "aria-label": "End of the interpolation"});
for (const [name, label] of [["first", "From"], ["last", "To"]]) {
  const choice = button(label, {"data-end": name});
  choice.addEventListener("click", () => { end = name; showPanel(); });
  ends.append(choice);
}

function slider(label, key, min, max, step, format) {
  const input = make("input", {type: "range", min, max, step, value: settings[key]});
  const output = make("output", {}, format(settings[key]));
  input.addEventListener("input", () => {
    settings[key] = Number(input.value);
    output.textContent = format(settings[key]);
    changed();
  });
  return make("label", {class: "line"}, make("span", {}, label), input, output);
}
const count = slider("Images", "n", 1, about.limits.n, 1, String);
const truncation = slider("Truncation", "truncation", 0, 1, 0.05, value => value.toFixed(2));
const live = make("input", {type: "checkbox"}), go = make("button", {type: "submit", class: "primary"}, "Generate");
live.checked = true;
form.append(ends, panel.element, make("div", {class: "settings"}, count, truncation),
  make("div", {class: "tools go"}, go, make("label", {class: "quiet small"}, live, " update automatically")));
form.addEventListener("submit", event => { event.preventDefault(); request(); });

const current = () => prompts[view === "interpolate" ? end : "generate"];
function showPanel() {
  form.hidden = view === "predict";
  ends.hidden = view !== "interpolate";
  count.hidden = view !== "generate";
  for (const choice of ends.children) choice.setAttribute("aria-pressed", String(choice.dataset.end === end));
  panel.show(current());
}

let timer = 0;
function changed() {
  clearTimeout(timer);
  if (live.checked) timer = setTimeout(request, DELAY);
}

// Answers
const withLegend = frames => frames.map(frame => ({...frame, box_legend: about.legend.boxes}));

/** Show the legend; of many classes, only those in the pictures. */
function showLegend(frames) {
  const masks = about.tasks.includes("segmentation"), boxes = about.tasks.includes("detection");
  const entries = masks ? about.legend.masks : boxes ? about.legend.boxes : [];
  const seen = new Set(frames.flatMap(frame => masks ? frame.mask_classes : frame.boxes[0][0].map(box => box[4])));
  const colored = entries.filter(([, color], kind) => color && (entries.length <= MAX_COLORS || seen.has(kind)));
  element("legend").replaceChildren(...colored.slice(0, MAX_COLORS).map(([name, color]) => {
    const chip = make("i");
    chip.style.background = color;
    return make("li", {}, chip, name);
  }));
}
const list = make("ul", {class: "cells", id: "generated"});
element("view-generate").append(list);
/** Choose the number of columns by the width; if there are several captions, so that each keeps to its own columns. */
function columns() {
  const captions = new Set(generated.map(frame => frame.caption)).size, narrow = list.clientWidth < 500;
  const least = narrow ? 3 : 4;
  const wanted = narrow ? 110 : generated.length <= 12 ? 190 : generated.length <= 30 ? 150 : 104;  // pixels per column
  const ideal = Math.max(least, Math.round(list.clientWidth / wanted));
  const near = [0, -1, 1, -2, 2, 3].map(step => ideal + step).filter(some => some >= Math.min(least, 3));
  const even = near.find(some => captions > 1 && (captions % some === 0 || some % captions === 0));
  list.style.setProperty("--columns", even || ideal);
}
new ResizeObserver(columns).observe(list);
const requestSamples = oneAtATime("sample", ({pictures}, seconds) => {
  generated = withLegend(pictures);
  columns();
  grid(generated, detail, list);
  showLegend(generated);
  dropUnused();
  done("generate", seconds, `${generated.length} images`);
}, fail);
const interpolation = interpolateView(element("view-interpolate"), detail);
const requestInterpolation = oneAtATime("interpolate", ({pictures}, seconds) => {
  const names = [prompts.first, prompts.last].map(prompt => promptInWords(prompt) || `seed ${prompt.seed}`);
  interpolation.show(withLegend(pictures), names);
  showLegend(pictures);
  done("interpolate", seconds, `${pictures.length} images`);
}, fail);
const prediction = predictView(element("view-predict"), about, {detail, fail, done, anyGenerated, showLegend});

/** Send the request of the current view. */
function request() {
  clearTimeout(timer);
  const message = prompt => ({prompt: promptMessage(prompt, about), seed: prompt.seed}), {n, truncation} = settings;
  if (view === "generate") requestSamples({...message(prompts.generate), n, truncation});
  if (view === "interpolate") {
    requestInterpolation({first: message(prompts.first), last: message(prompts.last), n: FRAMES, truncation});
  }
}

/** One of the generated pictures as a file; a new one if there is none yet. */
async function anyGenerated() {
  const random = generated[Math.floor(Math.random() * generated.length)];
  return pictureMessage(random || (await post("sample", {n: 1})).pictures[0], "generated.png");
}

function detail(frame) {
  showDetail(frame, actions(frame));
}

/** What the run can do with a picture, as [label, function] pairs. */
function actions(frame) {
  const found = [], has = name => about.conditions.includes(name);
  const change = act => frame => {
    act(frame);
    if (view === "predict") location.hash = "generate";
    showPanel();
    request();
  };
  if (about.tasks.some(name => PREDICTING.includes(name))) {
    found.push(["Predict", frame => {
      location.hash = "predict";
      prediction.predict(pictureMessage(frame, `${frame.caption || "generated"}.png`));
    }]);
  }
  if (has("image")) {
    found.push(["More like this", change(frame => {
      current().image = {...pictureMessage(frame, "generated.png"), url: frame.images};
    })]);
  }
  if (has("layout") && frame.mask) {
    found.push(["Use mask as layout", change(frame => {
      current().tool = "layout";
      current().mask = Uint8Array.from(atob(frame.mask), letter => letter.charCodeAt(0));
    })]);
  }
  return found;
}

// Layers, legend, views
element("with-masks").hidden = !about.tasks.includes("segmentation");
element("with-boxes").hidden = !about.tasks.includes("detection");
for (const box of document.querySelectorAll("[data-layer]")) {
  box.addEventListener("change", () => { layers[box.dataset.layer] = box.checked; redraw(); });
}
element("layers").hidden = false;
showLegend([]);

/** Fill empty ends of the interpolation: two classes, or two seeds. */
function defaultEnds() {
  if (promptInWords(prompts.first) || promptInWords(prompts.last)) return;
  const one = prompts.generate.classes[0] || about.classes[0], two = about.classes.find(name => name !== one);
  if (two && about.conditions.some(name => ["class", "labels"].includes(name))) {
    prompts.first.classes = [one];
    prompts.last.classes = [two];
  } else {
    prompts.last.seed = 1;
  }
}

function show() {
  view = views.includes(location.hash.slice(1)) ? location.hash.slice(1) : "generate";
  for (const name of views) element(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = view;
  interpolation.pause();
  element("error").hidden = true;
  element("status").textContent = "";
  if (view === "interpolate") defaultEnds();
  showPanel();
  request();
}
document.querySelector('.tabs a[href="#predict"]').hidden = !about.tasks.some(name => PREDICTING.includes(name));
window.addEventListener("hashchange", show);
show();

// Newer checkpoints of a run in training
element("reload").addEventListener("click", async event => {
  event.currentTarget.disabled = true;
  try {
    Object.assign(about, await post("reload"));
    showFacts();
    request();
  } catch (error) {
    fail(error);
  }
  element("reload").disabled = false;
});
setInterval(async () => {
  if (document.hidden) return;
  try {
    about.newer = (await get("newer")).newer;
    showFacts();
  } catch { /* the next request reports it */ }
}, POLL);
