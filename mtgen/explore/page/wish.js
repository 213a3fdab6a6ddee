// What is asked for: the panel that shows and changes one wish, and the wish as the server reads it.
import {layoutControl} from "./layout.js";
import {base64, fileMessage} from "./server.js";
import {soundControl} from "./sound.js";

const FEW = 40;  // classes that are all shown; more are chosen by typing

export const emptyWish = () => ({classes: [], together: false, captions: "", sound: null, image: null, tool: "", mask: null, boxes: [], domains: [], seed: 0});

export function wishMessage(wish, about) {
  const {classes, sound, image, tool, mask, boxes} = wish;
  return {
    classes: wish.together && classes.length ? [classes] : classes.map(name => [name]),
    captions: wish.captions.split("\n").filter(line => line.trim()),
    sound: sound && {name: sound.name, data: sound.data},
    image: image && {name: image.name, data: image.data},
    mask: tool === "layout" && mask ? {width: about.width, height: about.height, data: base64(mask)} : null,
    boxes: tool === "boxes" ? boxes : [],
    domains: wish.domains,
  };
}

const layoutInWords = ({tool, mask, boxes}) => tool === "boxes" ? boxes.length && (boxes.length > 1 ? `${boxes.length} boxes` : "a box") : mask && "a mask";

export const wishInWords = wish => [
  wish.classes.join(wish.together ? " + " : ", "), wish.captions.trim() && `“${wish.captions.trim().replaceAll("\n", "”, “")}”`,
  wish.sound && wish.sound.name, wish.image && `like ${wish.image.name}`, layoutInWords(wish), wish.domains.join(", "),
].filter(Boolean).join(" · ");

const control = (name, ...children) => make("div", {class: "control", role: "group", "aria-label": name}, make("h3", {}, name), ...children);

/** A part of the panel that is folded away until it is wanted; its line says what is in it. */
function folded(name, made, said) {
  const words = make("span", {class: "quiet"}), details = make("details", {class: "fold"}, make("summary", {}, make("h3", {}, name), words), made.element);
  const tell = wish => {
    words.textContent = said(wish) || "none";
    if (said(wish)) details.open = true;
  };
  return {element: details, tell, show(wish) { made.show(wish); tell(wish); }};
}

/** Names that are switched on and off. */
function chipsControl(name, names, key, change, extra = []) {
  const list = make("div", {class: "chips"}), clear = make("button", {type: "button", class: "plain"}, "clear");
  const id = `names-${key}`, entry = make("input", {type: "text", list: id, placeholder: `one of ${names.length}`, "aria-label": `Add: ${name}`});
  const known = make("datalist", {id}, ...names.map(one => make("option", {value: one})));
  const holder = control(name, ...(names.length > FEW ? [entry, known] : []), list, ...extra);
  holder.firstChild.append(clear);
  let wish = null;
  function set(chosen) {
    wish[key] = chosen;
    show(wish);
    change();
  }
  function show(other) {
    wish = other;
    const chosen = wish[key], offered = names.length > FEW ? chosen : names, at = [...list.children].indexOf(document.activeElement);
    list.replaceChildren(...offered.map(one => {
      const chip = make("button", {type: "button", class: "chip", "aria-pressed": String(chosen.includes(one))}, one);
      chip.addEventListener("click", () => set(chosen.includes(one) ? chosen.filter(other => other !== one) : [...chosen, one]));
      return chip;
    }));
    if (list.children[at]) list.children[at].focus();
    clear.hidden = !chosen.length;
  }
  entry.addEventListener("change", () => {
    const found = names.find(one => one.toLowerCase() === entry.value.trim().toLowerCase());
    entry.setCustomValidity(found || !entry.value ? "" : "no such name");
    entry.reportValidity();
    if (!found) return;
    entry.value = "";
    if (!wish[key].includes(found)) set([...wish[key], found]);
  });
  clear.addEventListener("click", () => set([]));
  return {element: holder, show};
}

function classControl(about, change) {
  const labels = about.conditions.includes("labels"), box = make("input", {type: "checkbox"});
  const together = make("label", {class: "line"}, box, " all in one image");
  const chips = chipsControl("Class", about.classes, "classes", change, labels ? [together] : []);
  let wish = null;
  box.addEventListener("change", () => {
    wish.together = box.checked;
    change();
  });
  return {element: chips.element, show(other) {
    wish = other;
    wish.together = labels && (wish.together || !about.conditions.includes("class"));
    box.checked = wish.together;
    chips.show(other);
  }};
}

function captionControl(about, change) {
  const area = make("textarea", {rows: "1", placeholder: "what the image shows; a line each", "aria-label": "Caption", spellcheck: "false"});
  let wish = null;
  area.addEventListener("input", () => {
    wish.captions = area.value;
    area.rows = Math.min(6, area.value.split("\n").length);
    change();
  });
  return {element: control("Caption", area), show(other) {
    wish = other;
    area.value = wish.captions;
    area.rows = Math.min(6, area.value.split("\n").length);
  }};
}

function imageControl(about, change, fail) {
  const choose = make("input", {type: "file", accept: "image/png,image/jpeg,image/webp", class: "sr", id: "like-file", tabindex: "-1"});
  const chooser = make("button", {type: "button"}, "Open"), clear = make("button", {type: "button", class: "plain"}, "clear");
  const thumb = make("img", {class: "thumb", alt: "the image to resemble"});
  let wish = null;
  function show(other) {
    wish = other;
    thumb.hidden = clear.hidden = !wish.image;
    if (wish.image) thumb.src = wish.image.url;
  }
  function set(image) {
    wish.image = image;
    show(wish);
    change();
  }
  chooser.addEventListener("click", () => choose.click());
  clear.addEventListener("click", () => set(null));
  choose.addEventListener("change", async () => {
    const [file] = choose.files;
    choose.value = "";
    if (!file) return;
    try {
      set({...await fileMessage(file, about.limits.file), url: URL.createObjectURL(file)});
    } catch (error) {
      fail(error);
    }
  });
  return {element: make("div", {class: "control"}, thumb, make("div", {class: "tools"}, chooser, clear), choose), show};
}

function seedControl(about, change) {
  const field = make("input", {type: "number", min: "0", max: String(about.limits.seed), step: "1", "aria-label": "Seed"});
  const dice = make("button", {type: "button", title: "another seed"}, "Another");
  let wish = null;
  field.addEventListener("input", () => {
    if (!field.validity.valid || field.value === "") return;
    wish.seed = Number(field.value);
    change();
  });
  dice.addEventListener("click", () => {
    field.value = wish.seed = Math.floor(Math.random() * 100000);
    change();
  });
  return {element: make("div", {class: "line seed"}, make("span", {}, "Seed"), field, dice), show(other) {
    wish = other;
    field.value = wish.seed;
  }};
}

/** The controls of a wish, of what the run was trained on alone; `show(wish)` makes them those of another. */
export function wishPanel(about, change, fail) {
  const has = name => about.conditions.includes(name), parts = [];
  let shown = null;
  const changed = () => {
    parts.forEach(part => part.tell && part.tell(shown));
    change();
  };
  if (has("class") || has("labels")) parts.push(classControl(about, change));
  if (has("caption")) parts.push(captionControl(about, change));
  if (has("domain")) parts.push(chipsControl("Domain", about.domains, "domains", change));
  if (has("sound")) parts.push(folded("Sound", soundControl(about, changed, fail), wish => wish.sound && wish.sound.name));
  if (has("layout") || has("boxes")) parts.push(folded("Layout", layoutControl(about, changed, fail), layoutInWords));
  if (has("image")) parts.push(folded("Like an image", imageControl(about, changed, fail), wish => wish.image && wish.image.name));
  parts.push(seedControl(about, change));
  return {element: make("div", {class: "wish"}, ...parts.map(part => part.element)), show(wish) {
    shown = wish;
    parts.forEach(part => part.show(wish));
  }};
}
