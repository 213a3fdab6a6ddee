// The interpolation between two samples: a large picture, a slider, and a strip.
import {button} from "./controls.js";
import {dropUnused, pictureCanvas} from "./pictures.js";

export const FRAMES = 25;
const STRIP = 9, FRAME_TIME = 90;  // pictures in the strip; milliseconds per picture when playing

export function interpolateView(section, detail) {
  const slider = make("input", {type: "range", min: "0", max: String(FRAMES - 1), value: "0"});
  slider.setAttribute("aria-label", "Position");
  const play = button("▶ Play"), strip = make("ul", {class: "strip", "aria-label": "Interpolation"});
  const from = make("span", {class: "end"}), to = make("span", {class: "end"}), stage = make("div", {class: "stage"});
  section.append(stage, make("div", {class: "way"}, from, slider, to, play), strip);
  let frames = [], large = null, timer = 0, direction = 1;

  const frameOf = i => Math.round(i * (frames.length - 1) / (STRIP - 1));
  const percent = at => `${Math.round(100 * at / (frames.length - 1))}%`;
  function go(at) {
    slider.value = at;
    slider.setAttribute("aria-valuetext", percent(at));
    large.reuse(frames[at]);
    [...strip.children].forEach((item, i) => {
      item.firstChild.setAttribute("aria-pressed", String(frameOf(i) === Number(at)));
    });
  }
  function pause() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶ Play";
  }
  slider.addEventListener("input", () => { pause(); if (frames.length) go(Number(slider.value)); });
  play.addEventListener("click", () => {
    if (timer) return pause();
    play.textContent = "❚❚ Pause";
    timer = setInterval(() => {
      const at = Number(slider.value);
      if (at + direction < 0 || at + direction >= frames.length) direction = -direction;
      go(at + direction);
    }, FRAME_TIME);
  });
  return {
    pause,
    show(found, names) {
      frames = found;
      [from.textContent, to.textContent] = names;
      large = pictureCanvas(frames[0], "image at this position", 768);
      const opener = button(large, {class: "cell", title: "Show details"});
      opener.addEventListener("click", () => {
        detail({...frames[slider.value], caption: `${names.join(" to ")}, ${percent(slider.value)}`});
      });
      stage.replaceChildren(opener);
      strip.replaceChildren(...Array.from({length: STRIP}, (_, i) => {
        const at = frameOf(i), item = button(pictureCanvas(frames[at], ""), {class: "cell"});
        item.setAttribute("aria-label", `Go to ${percent(at)}`);
        item.addEventListener("click", () => { pause(); go(at); });
        return make("li", {}, item);
      }));
      dropUnused();
      go(Math.min(Number(slider.value), frames.length - 1));
    },
  };
}
