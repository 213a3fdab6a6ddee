// An image that is dropped in: what is read in it, and how it is drawn anew.
import {forget, grid, pictureCanvas} from "./pictures.js";
import {fileMessage, oneAtATime} from "./server.js";

const FEW = 12;  // domains that an image is translated into at once (of more they are chosen), and rows of what was read

export function readView(section, about, {look, fail, done, another, showLegend}) {
  const choose = make("input", {type: "file", accept: "image/png,image/jpeg,image/webp", class: "sr", id: "read-file", tabindex: "-1"});
  const chooser = make("button", {type: "button", class: "plain"}, "choose a file");
  const drawn = make("button", {type: "button", class: "plain"}, "take one that it drew");
  const drop = make("div", {class: "drop"}, make("p", {}, "Drop an image here, paste one, ", chooser, " or ", drawn, "."), choose);
  const found = make("div", {class: "found"}), translated = make("div", {class: "translated"});
  section.append(drop, found, translated);
  let message = null, targets = about.targets.slice(0, FEW);

  const ask = oneAtATime("read", (answer, seconds, asked) => {
    message = asked;
    forget();
    show(answer, asked.image.name);
    showLegend([answer.picture]);
    done("read", seconds, "read");
    translate();
  }, fail);
  const askTranslation = oneAtATime("translate", ({pictures}) => showTranslated(pictures), fail);
  const read = image => ask({image});

  function bars(title, rows) {
    const list = make("dl", {class: "bars"}, ...rows.flatMap(([name, share]) => {
      const bar = make("i");
      bar.style.width = `${(100 * share).toFixed(1)}%`;
      const percent = `${(100 * share).toFixed(share > 0.0995 ? 0 : 1)} %`;
      return [make("dt", {title: name}, name), make("dd", {}, make("span", {class: "track"}, bar), make("b", {}, percent))];
    }));
    return make("div", {class: "group"}, make("h3", {}, title), rows.length ? list : make("p", {class: "quiet small"}, "none"));
  }

  function show(answer, name) {
    const {picture, reconstruction, whole, seen, classes, tags, boxes} = answer, figures = [], groups = [];
    for (const frame of [picture, reconstruction]) if (frame) frame.box_legend = about.legend.boxes;
    const figure = (frame, words) => {
      const button = make("button", {type: "button", class: "cell", title: "a closer look"}, pictureCanvas(frame, words, 512));
      button.addEventListener("click", () => look({...frame, caption: words}));
      return make("figure", {}, button, make("figcaption", {}, words));
    };
    figures.push(figure(picture, about.tasks.includes("segmentation") || boxes ? "as read" : "the image"));
    if (reconstruction) figures.push(figure(reconstruction, "reconstructed"));
    if (classes.length) groups.push(bars("Class", classes));
    if (tags) groups.push(bars("In the image", tags.slice(0, FEW)));
    if (boxes) groups.push(bars("Boxes", boxes.slice(0, FEW).map(box => [box.class, box.score])));
    const cut = whole[0] !== seen[0] || whole[1] !== seen[1] ? ` The run sees its middle, ${seen[0]} × ${seen[1]} of ${whole[0]} × ${whole[1]} pixels.` : "";
    const note = make("p", {class: "note"}, make("b", {}, name), cut ? "." : "", cut);
    found.replaceChildren(note, make("div", {class: "figures"}, ...figures, make("div", {class: "groups"}, ...groups)));
  }

  function translate() {
    if (!about.targets.length || !message) return;
    const title = make("h3", {}, "Translated into");
    if (about.targets.length <= FEW) translated.replaceChildren(title, translated.querySelector(".cells") || make("ul", {class: "cells"}));
    else {
      const select = make("select", {"aria-label": "Translate into"}, ...about.targets.map(name => make("option", {}, name)));
      select.value = targets[0];
      targets = [select.value];
      select.addEventListener("change", () => { targets = [select.value]; askTranslation({image: message.image, to: targets}); });
      title.append(" ", select);
      translated.replaceChildren(title, make("ul", {class: "cells"}));
    }
    askTranslation({image: message.image, to: targets});
  }

  function showTranslated(pictures) {
    grid(pictures.map(frame => ({...frame, box_legend: about.legend.boxes})), look, translated.querySelector(".cells"));
  }

  const take = async file => {
    try {
      read(await fileMessage(file, about.limits.file));
    } catch (error) {
      fail(error);
    }
  };
  chooser.addEventListener("click", () => choose.click());
  drawn.addEventListener("click", () => another().then(read, fail));
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
  return {read};
}
