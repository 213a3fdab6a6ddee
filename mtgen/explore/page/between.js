// The way from one sample to another: a slider, a strip, and a picture that moves along it.
import {forget, pictureCanvas} from "./pictures.js";

export const FRAMES = 25;
const STRIP = 9, MOMENT = 90;  // pictures in the strip; milliseconds of a picture that plays

export function betweenView(section, look) {
  const slider = make("input", {type: "range", min: "0", max: String(FRAMES - 1), value: "0", "aria-label": "Place on the way"});
  const play = make("button", {type: "button"}, "▶ Play"), strip = make("ul", {class: "strip", "aria-label": "The way"});
  const from = make("span", {class: "end"}), to = make("span", {class: "end"}), stage = make("div", {class: "stage"});
  section.append(stage, make("div", {class: "way"}, from, slider, to, play), strip);
  let frames = [], large = null, timer = 0, ahead = 1;

  const placeOf = i => Math.round(i * (frames.length - 1) / (STRIP - 1));
  function go(at) {
    slider.value = at;
    slider.setAttribute("aria-valuetext", `${Math.round(100 * at / (frames.length - 1))} % of the way`);
    large.reuse(frames[at]);
    [...strip.children].forEach((item, i) => item.firstChild.setAttribute("aria-pressed", String(placeOf(i) === Number(at))));
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
      if (at + ahead < 0 || at + ahead >= frames.length) ahead = -ahead;
      go(at + ahead);
    }, MOMENT);
  });
  return {
    pause,
    show(found, words) {
      frames = found;
      [from.textContent, to.textContent] = words;
      large = pictureCanvas(frames[0], "the picture at this place of the way", 768);
      const button = make("button", {type: "button", class: "cell", title: "a closer look"}, large);
      button.addEventListener("click", () => look({...frames[slider.value], caption: `${slider.value} of ${frames.length - 1}`}));
      stage.replaceChildren(button);
      strip.replaceChildren(...Array.from({length: STRIP}, (_, i) => {
        const at = placeOf(i), label = `to ${Math.round(100 * at / (frames.length - 1))} %`;
        const item = make("button", {type: "button", class: "cell", "aria-label": label}, pictureCanvas(frames[at], ""));
        item.addEventListener("click", () => { pause(); go(at); });
        return make("li", {}, item);
      }));
      forget();
      go(Math.min(Number(slider.value), frames.length - 1));
    },
  };
}
