// The page: what the run offers, its three views, and what is asked for in each.
import {betweenView, FRAMES} from "./between.js";
import {closer, forget, grid, layers, redraw} from "./pictures.js";
import {readView} from "./read.js";
import {get, oneAtATime, pictureMessage, post} from "./server.js";
import {emptyWish, wishInWords, wishMessage, wishPanel} from "./wish.js";

const element = id => document.getElementById(id), views = ["draw", "between", "read"];
const PAUSE = 120, LOOK = 20000;  // milliseconds until a change is drawn, and between two looks for a newer checkpoint
const MANY = 24;  // colors in the legend, at most
const READING = ["classification", "tagging", "segmentation", "detection", "reconstruction", "translation"];

function fail(error) {
  element("error").textContent = error.message;
  element("error").hidden = false;
  element("status").textContent = "";
}
function done(of, seconds, words) {
  element("error").hidden = true;
  if (of === view) element("status").textContent = `${words} in ${seconds.toFixed(2)} s`;
}

let about;
try {
  about = await get("about");
} catch (error) {
  fail(error);
  throw error;
}

function showFacts() {
  const {run, images, of_images, width, height, channels, parameters, device, newer} = about;
  element("run").textContent = run;
  document.title = `${run} · mtgen explore`;
  const seen = images < of_images ? `${number(images)} of ${number(of_images)} images seen` : `${number(images)} images seen`;
  element("facts").textContent = [seen, `${width} × ${height} ${channels === 1 ? "gray" : "color"}`, `${(parameters / 1e6).toFixed(2)}M parameters`, device].join(" · ");
  const button = element("newest");
  button.hidden = newer === null;
  button.textContent = newer === null ? "" : `Newest checkpoint: ${number(newer)} images`;
}
showFacts();

// What is asked for
const wishes = {draw: emptyWish(), first: emptyWish(), last: emptyWish()};
const few = about.classes.length > 1 && about.classes.length <= 10;
const settings = {n: few ? 2 * about.classes.length : 16, truncation: 1};
let view = "draw", end = "first", drawn = [];

const panel = wishPanel(about, changed, fail), form = element("panel");
const ends = make("div", {class: "segments ends", role: "group", "aria-label": "Which end"});
for (const [name, words] of [["first", "From"], ["last", "To"]]) {
  const button = make("button", {type: "button", "data-end": name}, words);
  button.addEventListener("click", () => { end = name; showPanel(); });
  ends.append(button);
}

function slider(words, key, min, max, step, said) {
  const input = make("input", {type: "range", min, max, step, value: settings[key]}), output = make("output", {}, said(settings[key]));
  const label = make("label", {class: "line"}, make("span", {}, words), input, output);
  input.addEventListener("input", () => {
    settings[key] = Number(input.value);
    output.textContent = said(settings[key]);
    changed();
  });
  return label;
}
const count = slider("Number", "n", 1, about.limits.n, 1, String);
const truncation = slider("Truncation", "truncation", 0, 1, 0.05, value => value.toFixed(2));
const live = make("input", {type: "checkbox"}), go = make("button", {type: "submit", class: "primary"}, "Draw");
live.checked = true;
form.append(ends, panel.element, make("div", {class: "settings"}, count, truncation),
  make("div", {class: "tools go"}, go, make("label", {class: "quiet small"}, live, " while I change things")));
form.addEventListener("submit", event => { event.preventDefault(); ask(); });

const current = () => wishes[view === "between" ? end : "draw"];
function showPanel() {
  form.hidden = view === "read";
  ends.hidden = view !== "between";
  count.hidden = view !== "draw";
  ends.querySelectorAll("button").forEach(button => button.setAttribute("aria-pressed", String(button.dataset.end === end)));
  panel.show(current());
}

let timer = 0;
function changed() {
  clearTimeout(timer);
  if (live.checked) timer = setTimeout(ask, PAUSE);
}

// Answers
const legendOf = frames => frames.map(frame => ({...frame, box_legend: about.legend.boxes}));

/** The colors; of many classes, those that are in the pictures. */
function showLegend(frames) {
  const masks = about.tasks.includes("segmentation"), entries = masks ? about.legend.masks : about.tasks.includes("detection") ? about.legend.boxes : [];
  const seen = new Set(frames.flatMap(frame => masks ? frame.kinds : frame.boxes[0][0].map(box => box[4])));
  const colored = entries.filter(([, color], kind) => color && (entries.length <= MANY || seen.has(kind)));
  element("legend").replaceChildren(...colored.slice(0, MANY).map(([name, color]) => {
    const chip = make("i");
    chip.style.background = color;
    return make("li", {}, chip, name);
  }));
}
const list = make("ul", {class: "cells", id: "drawn"});
element("view-draw").append(list);
/** As many columns as fit well; where several things are asked for in turn, so that each keeps to its own. */
function columns() {
  const kinds = new Set(drawn.map(frame => frame.caption)).size, narrow = list.clientWidth < 500, least = narrow ? 3 : 4;
  const ideal = Math.max(least, Math.round(list.clientWidth / (narrow ? 110 : drawn.length <= 12 ? 190 : drawn.length <= 30 ? 150 : 104)));
  const near = [0, -1, 1, -2, 2, 3].map(step => ideal + step).filter(some => some >= Math.min(least, 3));
  const even = near.find(some => kinds > 1 && (kinds % some === 0 || some % kinds === 0));
  list.style.setProperty("--columns", even || ideal);
}
new ResizeObserver(columns).observe(list);
const askDraw = oneAtATime("draw", ({pictures}, seconds) => {
  drawn = legendOf(pictures);
  columns();
  grid(drawn, look, list);
  showLegend(drawn);
  forget();
  done("draw", seconds, `${drawn.length} images`);
}, fail);
const between = betweenView(element("view-between"), look);
const askBetween = oneAtATime("between", ({pictures}, seconds) => {
  const names = [wishes.first, wishes.last].map(wish => wishInWords(wish) || `seed ${wish.seed}`);
  between.show(legendOf(pictures), names);
  showLegend(pictures);
  done("between", seconds, `${pictures.length} images`);
}, fail);
const reading = readView(element("view-read"), about, {look, fail, done, another, showLegend});

function ask() {
  clearTimeout(timer);
  if (view === "draw") askDraw({wish: wishMessage(wishes.draw, about), n: settings.n, seed: wishes.draw.seed, truncation: settings.truncation});
  if (view === "between") {
    const [first, last] = [wishes.first, wishes.last].map(wish => ({wish: wishMessage(wish, about), seed: wish.seed}));
    askBetween({first, last, n: FRAMES, truncation: settings.truncation});
  }
}

/** One of the pictures that were drawn, as a file. */
async function another() {
  const found = drawn.length ? drawn[Math.floor(Math.random() * drawn.length)] : (await post("draw", {n: 1})).pictures[0];
  return pictureMessage(found, "drawn.png");
}

function look(frame) {
  closer(frame, actions(frame));
}

/** What can be done with a picture, where the run can do it. */
function actions(frame) {
  const found = [], has = name => about.conditions.includes(name);
  const wish = () => wishes[view === "between" ? end : "draw"];
  const change = act => frame => {
    act(frame);
    if (view === "read") location.hash = "draw";
    showPanel();
    ask();
  };
  if (about.tasks.some(name => READING.includes(name))) {
    found.push(["Read it", frame => { location.hash = "read"; reading.read(pictureMessage(frame, `${frame.caption || "drawn"}.png`)); }]);
  }
  if (has("image")) {
    found.push(["More like it", change(frame => { wish().image = {...pictureMessage(frame, "drawn.png"), url: frame.images}; })]);
  }
  if (has("layout") && frame.mask) {
    found.push(["Its mask as layout", change(frame => {
      wish().tool = "layout";
      wish().mask = Uint8Array.from(atob(frame.mask), letter => letter.charCodeAt(0));
    })]);
  }
  return found;
}

// Switches, colors, views
element("with-masks").hidden = !about.tasks.includes("segmentation");
element("with-boxes").hidden = !about.tasks.includes("detection");
for (const box of document.querySelectorAll("[data-layer]")) {
  box.addEventListener("change", () => { layers[box.dataset.layer] = box.checked; redraw(); });
}
element("layers").hidden = false;
showLegend([]);

function show() {
  view = views.includes(location.hash.slice(1)) ? location.hash.slice(1) : "draw";
  for (const name of views) element(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = view;
  between.pause();
  element("error").hidden = true;
  element("status").textContent = "";
  if (view === "between" && !wishInWords(wishes.first) && !wishInWords(wishes.last)) {
    const [one, two] = [wishes.draw.classes[0] || about.classes[0], about.classes.find(name => name !== (wishes.draw.classes[0] || about.classes[0]))];
    if (two && about.conditions.some(name => ["class", "labels"].includes(name))) [wishes.first.classes, wishes.last.classes] = [[one], [two]];
    else wishes.last.seed = 1;
  }
  showPanel();
  ask();
}
document.querySelector('.tabs a[href="#read"]').hidden = !about.tasks.some(name => READING.includes(name));
window.addEventListener("hashchange", show);
show();

// Newer checkpoints of a run that trains
element("newest").addEventListener("click", async event => {
  event.currentTarget.disabled = true;
  try {
    Object.assign(about, await post("newest"));
    showFacts();
    ask();
  } catch (error) {
    fail(error);
  }
  element("newest").disabled = false;
});
setInterval(async () => {
  if (document.hidden) return;
  try {
    about.newer = (await get("newer")).newer;
    showFacts();
  } catch { /* the next question says so */ }
}, LOOK);
