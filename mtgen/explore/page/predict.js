// The prediction for an image: its labels, its reconstruction and its translations.
import {dropUnused, grid, pictureCanvas} from "./pictures.js";
import {fileMessage, oneAtATime} from "./server.js";

const MAX_ROWS = 12;  // rows of predictions, and translations shown at once; of more, one is chosen

const percent = value => value < 0.001 ? "<0.1%" : `${(100 * value).toFixed(value > 0.0995 ? 0 : 1)}%`;

export function predictView(section, about, {detail, fail, done, anyGenerated, showLegend}) {
  const choose = make("input", {type: "file", accept: "image/png,image/jpeg,image/webp", class: "sr", id: "predict-file", tabindex: "-1"});
  const chooser = make("button", {type: "button", class: "plain"}, "open a file");
  const generated = make("button", {type: "button", class: "plain"}, "use a generated image");
  const drop = make("div", {class: "drop"}, make("p", {}, "Drop or paste an image here, ", chooser, ", or ", generated, "."), choose);
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
      return [make("dt", {title: name}, name), make("dd", {}, make("span", {class: "track"}, bar), make("b", {}, format(value)))];
    }));
    return make("div", {class: "group"}, make("h3", {}, title), rows.length ? list : make("p", {class: "quiet small"}, "none"));
  }

  function figure(frame, caption) {
    const button = make("button", {type: "button", class: "cell", title: "Show details"}, pictureCanvas(frame, caption, 512));
    button.addEventListener("click", () => detail({...frame, caption}));
    return make("figure", {}, button, make("figcaption", {}, caption));
  }

  function show(answer, name) {
    const {picture, reconstruction, whole, seen, classes, tags, boxes} = answer, figures = [], groups = [];
    for (const frame of [picture, reconstruction]) if (frame) frame.box_legend = about.legend.boxes;
    figures.push(figure(picture, about.tasks.includes("segmentation") || boxes ? "prediction" : "image"));
    if (reconstruction) figures.push(figure(reconstruction, "reconstruction"));
    if (classes.length) groups.push(bars("Class", classes, percent));
    if (tags) groups.push(bars("Tags", tags.slice(0, MAX_ROWS), percent));
    if (boxes) groups.push(bars("Boxes", boxes.slice(0, MAX_ROWS).map(box => [box.class, box.score]), score => score.toFixed(2)));
    const cropped = whole[0] !== seen[0] || whole[1] !== seen[1];
    const note = make("p", {class: "note"}, make("b", {}, name));
    if (cropped) note.append(`: the model sees the center, ${seen[0]} × ${seen[1]} of ${whole[0]} × ${whole[1]} pixels`);
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
    grid(pictures.map(frame => ({...frame, box_legend: about.legend.boxes})), detail, translated.querySelector(".cells"));
  }

  const take = async file => {
    try {
      predict(await fileMessage(file, about.limits.file));
    } catch (error) {
      fail(error);
    }
  };
  chooser.addEventListener("click", () => choose.click());
  generated.addEventListener("click", () => anyGenerated().then(predict, fail));
  choose.addEventListener("change", () => { if (choose.files[0]) take(choose.files[0]); choose.value = ""; });
  section.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
  section.addEventListener("dragleave", () => drop.classList.remove("over"));
  section.addEventListener("drop", event => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", event => {
    const file = [...event.clipboardData.files].find(one => one.type.startsWith("image/"));
    if (file && !section.hidden) take(file);
  });
  return {predict};
}
