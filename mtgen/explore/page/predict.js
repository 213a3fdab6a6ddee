// The prediction for an image: its labels, its reconstruction and its translations.
import {button, fileInput, IMAGE_TYPES, link} from "./controls.js";
import {dropUnused, grid, pictureCanvas} from "./pictures.js";
import {fileMessage, oneAtATime} from "./server.js";

const MAX_ROWS = 12;  // rows of predictions, and translations shown at once; of more, one is chosen

const percent = value => value < 0.001 ? "<0.1%" : `${(100 * value).toFixed(value > 0.0995 ? 0 : 1)}%`;

export function predictView(section, about, {detail, fail, done, anyGenerated, showLegend}) {
  const open = link("open a file"), generated = link("use a generated image");
  const take = async file => predict(await fileMessage(file, about.limits.file));
  const input = fileInput("predict-file", IMAGE_TYPES, open, take, fail);
  const words = make("p", {}, "Drop or paste an image here, ", open, ", or ", generated, ".");
  const drop = make("div", {class: "drop"}, words, input);
  const found = make("div", {class: "found"}), translated = make("div", {class: "translated"});
  section.append(drop, found, translated);
  let message = null, targets = about.translation_targets.slice(0, MAX_ROWS);

  const request = oneAtATime("predict", (answer, seconds, sent) => {
    message = sent;
    dropUnused();
    show(answer, sent.image.name);
    showLegend([answer.picture]);
    done("predict", seconds, "Predicted");
    translate();
  }, fail);
  const requestTranslation = oneAtATime("translate", ({pictures}) => showTranslated(pictures), fail);
  const predict = image => request({image});

  /** Rows of [name, value between 0 and 1] as bars. */
  function bars(title, rows, format) {
    const list = make("dl", {class: "bars"}, ...rows.flatMap(([name, value]) => {
      const bar = make("i");
      bar.style.width = `${(100 * value).toFixed(1)}%`;
      const track = make("span", {class: "track"}, bar);
      return [make("dt", {title: name}, name), make("dd", {}, track, make("b", {}, format(value)))];
    }));
    const none = make("p", {class: "quiet small"}, "none");
    return make("div", {class: "group"}, make("h3", {}, title), rows.length ? list : none);
  }

  function figure(frame, caption) {
    const opener = button(pictureCanvas(frame, caption, 512), {class: "cell", title: "Show details"});
    opener.addEventListener("click", () => detail({...frame, caption}));
    return make("figure", {}, opener, make("figcaption", {}, caption));
  }

  function show(answer, name) {
    const {picture, reconstruction, whole, seen, classes, tags, boxes} = answer, figures = [], groups = [];
    for (const frame of [picture, reconstruction]) if (frame) frame.box_legend = about.legend.boxes;
    figures.push(figure(picture, about.tasks.includes("segmentation") || boxes ? "prediction" : "image"));
    if (reconstruction) figures.push(figure(reconstruction, "reconstruction"));
    if (classes.length) groups.push(bars("Class", classes, percent));
    if (tags) groups.push(bars("Tags", tags.slice(0, MAX_ROWS), percent));
    if (boxes) {
      const scores = boxes.slice(0, MAX_ROWS).map(box => [box.class, box.score]);
      groups.push(bars("Boxes", scores, score => score.toFixed(2)));
    }
    const note = make("p", {class: "note"}, make("b", {}, name));
    if (whole[0] !== seen[0] || whole[1] !== seen[1]) {
      note.append(`: the model sees the center, ${seen[0]} × ${seen[1]} of ${whole[0]} × ${whole[1]} pixels`);
    }
    found.replaceChildren(note, make("div", {class: "figures"}, ...figures, make("div", {class: "groups"}, ...groups)));
  }

  function translate() {
    if (!about.translation_targets.length || !message) return;
    const title = make("h3", {}, "Translations");
    if (about.translation_targets.length <= MAX_ROWS) {
      translated.replaceChildren(title, translated.querySelector(".cells") || make("ul", {class: "cells"}));
    } else {
      const options = about.translation_targets.map(name => make("option", {}, name));
      const select = make("select", {"aria-label": "Target of the translation"}, ...options);
      select.value = targets[0];
      targets = [select.value];
      select.addEventListener("change", () => {
        targets = [select.value];
        requestTranslation({image: message.image, to: targets});
      });
      title.append(" ", select);
      translated.replaceChildren(title, make("ul", {class: "cells"}));
    }
    requestTranslation({image: message.image, to: targets});
  }

  function showTranslated(pictures) {
    const frames = pictures.map(frame => ({...frame, box_legend: about.legend.boxes}));
    grid(frames, detail, translated.querySelector(".cells"));
  }

  generated.addEventListener("click", () => anyGenerated().then(predict, fail));
  section.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
  section.addEventListener("dragleave", () => drop.classList.remove("over"));
  section.addEventListener("drop", event => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]).catch(fail);
  });
  document.addEventListener("paste", event => {
    const file = [...event.clipboardData.files].find(one => one.type.startsWith("image/"));
    if (file && !section.hidden) take(file).catch(fail);
  });
  return {predict};
}
