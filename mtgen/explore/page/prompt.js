// The prompt: the panel that shows and edits one, and its form as a message.
import {button, fileInput, IMAGE_TYPES, link} from "./controls.js";
import {layoutControl} from "./layout.js";
import {base64, fileMessage} from "./server.js";
import {soundControl} from "./sound.js";

const MAX_CHIPS = 40;  // up to this many names are all shown; of more, those chosen by typing

export const emptyPrompt = () => ({
  classes: [], together: false, captions: "", sound: null, image: null, domains: [], seed: 0,
  tool: "", mask: null, boxes: [],  // the layout: see layout.js
});

export function promptMessage(prompt, about) {
  const {classes, sound, image, tool, mask, boxes} = prompt;
  return {
    classes: prompt.together && classes.length ? [classes] : classes.map(name => [name]),
    captions: prompt.captions.split("\n").filter(line => line.trim()),
    sound: sound && {name: sound.name, data: sound.data},
    image: image && {name: image.name, data: image.data},
    mask: tool === "layout" && mask ? {width: about.width, height: about.height, data: base64(mask)} : null,
    boxes: tool === "boxes" ? boxes : [],
    domains: prompt.domains,
  };
}

function layoutInWords({tool, mask, boxes}) {
  if (tool !== "boxes") return mask ? "mask" : "";
  return boxes.length ? `${boxes.length} ${boxes.length > 1 ? "boxes" : "box"}` : "";
}

export const promptInWords = prompt => [
  prompt.classes.join(prompt.together ? " + " : ", "),
  prompt.captions.trim() && `“${prompt.captions.trim().replaceAll("\n", "”, “")}”`,
  prompt.sound && prompt.sound.name,
  prompt.image && `like ${prompt.image.name}`,
  layoutInWords(prompt),
  prompt.domains.join(", "),
].filter(Boolean).join(" · ");

function control(name, ...children) {
  return make("div", {class: "control", role: "group", "aria-label": name}, make("h3", {}, name), ...children);
}

/** A collapsible part of the panel, whose summary line says what is in it. */
function folded(name, inner, inWords) {
  const words = make("span", {class: "quiet"});
  const details = make("details", {class: "fold"}, make("summary", {}, make("h3", {}, name), words), inner.element);
  const update = prompt => {
    words.textContent = inWords(prompt) || "none";
    if (inWords(prompt)) details.open = true;
  };
  return {element: details, update, show(prompt) { inner.show(prompt); update(prompt); }};
}

/** Names as chips that are switched on and off. */
function chipsControl(name, names, key, change, extra = []) {
  const list = make("div", {class: "chips"}), clear = link("clear");
  const id = `names-${key}`, placeholder = `type one of ${names.length} names`;
  const entry = make("input", {type: "text", list: id, placeholder, "aria-label": `Add: ${name}`});
  const known = make("datalist", {id}, ...names.map(one => make("option", {value: one})));
  const holder = control(name, ...(names.length > MAX_CHIPS ? [entry, known] : []), list, ...extra);
  holder.firstChild.append(clear);
  let prompt = null;
  function set(chosen) {
    prompt[key] = chosen;
    show(prompt);
    change();
  }
  function show(other) {
    prompt = other;
    const chosen = prompt[key], offered = names.length > MAX_CHIPS ? chosen : names;
    const focused = [...list.children].indexOf(document.activeElement);
    list.replaceChildren(...offered.map(one => {
      const on = chosen.includes(one), chip = button(one, {class: "chip", "aria-pressed": String(on)});
      chip.addEventListener("click", () => set(on ? chosen.filter(other => other !== one) : [...chosen, one]));
      return chip;
    }));
    if (list.children[focused]) list.children[focused].focus();
    clear.hidden = !chosen.length;
  }
  entry.addEventListener("change", () => {
    const found = names.find(one => one.toLowerCase() === entry.value.trim().toLowerCase());
    entry.setCustomValidity(found || !entry.value ? "" : "This name does not exist.");
    entry.reportValidity();
    if (!found) return;
    entry.value = "";
    if (!prompt[key].includes(found)) set([...prompt[key], found]);
  });
  clear.addEventListener("click", () => set([]));
  return {element: holder, show};
}

function classControl(about, change) {
  const labels = about.conditions.includes("labels"), box = make("input", {type: "checkbox"});
  const together = make("label", {class: "line"}, box, " all in one image");
  const chips = chipsControl("Class", about.classes, "classes", change, labels ? [together] : []);
  let prompt = null;
  box.addEventListener("change", () => {
    prompt.together = box.checked;
    change();
  });
  return {element: chips.element, show(other) {
    prompt = other;
    prompt.together = labels && (prompt.together || !about.conditions.includes("class"));
    box.checked = prompt.together;
    chips.show(other);
  }};
}

function captionControl(about, change) {
  const placeholder = "one caption per line";
  const area = make("textarea", {rows: "1", placeholder, "aria-label": "Caption", spellcheck: "false"});
  let prompt = null;
  area.addEventListener("input", () => {
    prompt.captions = area.value;
    area.rows = Math.min(6, area.value.split("\n").length);
    change();
  });
  return {element: control("Caption", area), show(other) {
    prompt = other;
    area.value = prompt.captions;
    area.rows = Math.min(6, area.value.split("\n").length);
  }};
}

function imageControl(about, change, fail) {
  const open = button("Open"), clear = link("clear"), thumb = make("img", {class: "thumb", alt: "reference image"});
  let prompt = null;
  function show(other) {
    prompt = other;
    thumb.hidden = clear.hidden = !prompt.image;
    if (prompt.image) thumb.src = prompt.image.url;
  }
  function set(image) {
    prompt.image = image;
    show(prompt);
    change();
  }
  const take = async file => set({...await fileMessage(file, about.limits.file), url: URL.createObjectURL(file)});
  const input = fileInput("reference-file", IMAGE_TYPES, open, take, fail);
  clear.addEventListener("click", () => set(null));
  return {element: make("div", {class: "control"}, thumb, make("div", {class: "tools"}, open, clear), input), show};
}

function seedControl(about, change) {
  const range = {min: "0", max: String(about.limits.seed), step: "1"};
  const field = make("input", {type: "number", ...range, "aria-label": "Seed"});
  const random = button("Random", {title: "Choose a random seed"});
  let prompt = null;
  field.addEventListener("input", () => {
    if (!field.validity.valid || field.value === "") return;
    prompt.seed = Number(field.value);
    change();
  });
  random.addEventListener("click", () => {
    field.value = prompt.seed = Math.floor(Math.random() * 100000);
    change();
  });
  return {element: make("div", {class: "line seed"}, make("span", {}, "Seed"), field, random), show(other) {
    prompt = other;
    field.value = prompt.seed;
  }};
}

/** The controls of the conditions that the run was trained on; `show(prompt)` makes them edit another prompt. */
export function promptPanel(about, change, fail) {
  const has = name => about.conditions.includes(name), parts = [];
  let shown = null;
  const changed = () => {
    parts.forEach(part => part.update && part.update(shown));
    change();
  };
  if (has("class") || has("labels")) parts.push(classControl(about, change));
  if (has("caption")) parts.push(captionControl(about, change));
  if (has("domain")) parts.push(chipsControl("Domain", about.domains, "domains", change));
  const name = key => prompt => prompt[key] && prompt[key].name;
  if (has("sound")) parts.push(folded("Sound", soundControl(about, changed, fail), name("sound")));
  if (has("layout") || has("boxes")) parts.push(folded("Layout", layoutControl(about, changed, fail), layoutInWords));
  if (has("image")) parts.push(folded("Reference image", imageControl(about, changed, fail), name("image")));
  parts.push(seedControl(about, change));
  return {element: make("div", {class: "prompt"}, ...parts.map(part => part.element)), show(prompt) {
    shown = prompt;
    parts.forEach(part => part.show(prompt));
  }};
}
