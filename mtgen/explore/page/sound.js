// A sound from a file or the microphone: heard, seen, and sent as a WAV that is made here.
import {base64, fileMessage} from "./server.js";

const LONGEST = 10;  // seconds of a recording
const QUIET = 0.06;  // share of a recording's loudest sample below which its beginning is silence
const BEFORE = 0.03;  // seconds that are kept before it
const RATE = 16000;
let context = null;
const audio = () => context ??= new AudioContext();

/** The control: `wish.sound` is `{name, data, samples, rate}` or null. */
export function soundControl(about, change, fail) {
  const choose = make("input", {type: "file", accept: "audio/*,.wav,.flac", class: "sr", id: "sound-file", tabindex: "-1"});
  const chooser = make("button", {type: "button", title: "a WAV, FLAC or other sound"}, "Open"), record = make("button", {type: "button"}, "● Record");
  const play = make("button", {type: "button"}, "▶ Play"), clear = make("button", {type: "button", class: "plain"}, "clear");
  const wave = make("canvas", {class: "wave", width: 600, height: 96, role: "img"});
  const about_it = make("p", {class: "quiet small"});
  const holder = make("div", {class: "control"}, make("div", {class: "tools"}, chooser, record, play, clear), choose, wave, about_it);
  let wish = null, recorder = null;

  function show(other) {
    wish = other;
    const sound = wish.sound;
    for (const element of [play, clear, wave]) element.hidden = !sound;
    const heard = `The run hears the first ${about.sound_seconds} s.`;
    about_it.textContent = sound ? `${sound.name}${sound.samples ? `, ${(sound.samples.length / sound.rate).toFixed(2)} s` : ""}. ${heard}` : heard;
    if (sound) drawWave(sound);
  }

  function set(sound) {
    wish.sound = sound;
    show(wish);
    change();
  }

  function drawWave({samples, rate, name}) {
    const draw = wave.getContext("2d"), {width, height} = wave, style = getComputedStyle(wave);
    draw.clearRect(0, 0, width, height);
    wave.setAttribute("aria-label", `waveform of ${name}`);
    if (!samples) return;
    const peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6), each = samples.length / width;
    const end = Math.min(1, about.sound_seconds * rate / samples.length) * width;
    for (let x = 0; x < width; x += 3) {
      let most = 0;
      for (let i = Math.floor(x * each); i < (x + 2) * each && i < samples.length; i++) most = Math.max(most, Math.abs(samples[i]));
      const tall = Math.max(2, most / peak * (height - 8));
      draw.globalAlpha = x < end ? 1 : 0.25;
      draw.fillStyle = style.color;
      draw.fillRect(x, (height - tall) / 2, 2, tall);
    }
  }

  async function take(file) {
    const message = await fileMessage(file, about.limits.file);
    let decoded = null;
    try {
      decoded = await audio().decodeAudioData(await file.arrayBuffer());
    } catch {
      if (!/\.(wav|flac)$/i.test(file.name)) throw new Error(`${file.name}: is no sound that this browser can read; give a WAV or FLAC file`);
    }
    const samples = decoded && mono(decoded), rate = decoded && decoded.sampleRate;
    if (samples && !/\.(wav|flac)$/i.test(file.name)) message.data = base64(wav(samples, rate));
    set({...message, samples, rate});
  }

  choose.addEventListener("change", () => {
    if (choose.files[0]) take(choose.files[0]).catch(fail);
    choose.value = "";
  });
  chooser.addEventListener("click", () => choose.click());
  clear.addEventListener("click", () => set(null));
  play.addEventListener("click", async () => {
    if (!wish.sound.samples) return;
    await audio().resume();
    const buffer = audio().createBuffer(1, wish.sound.samples.length, wish.sound.rate), source = audio().createBufferSource();
    buffer.copyToChannel(wish.sound.samples, 0);
    source.buffer = buffer;
    source.connect(audio().destination);
    source.start();
  });

  async function begin() {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({audio: {channelCount: 1, echoCancellation: false, noiseSuppression: false}});
    } catch (error) {
      throw new Error(`The microphone cannot be used (${error.name}): allow it for this page, or choose a file.`);
    }
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", event => parts.push(event.data));
    recorder.addEventListener("stop", async () => {
      clearTimeout(timer);
      stream.getTracks().forEach(track => track.stop());
      record.textContent = "● Record";
      record.classList.remove("on");
      recorder = null;
      try {
        const decoded = await audio().decodeAudioData(await new Blob(parts).arrayBuffer());
        const samples = await resampled(fromItsBeginning(mono(decoded), decoded.sampleRate), decoded.sampleRate);
        set({name: "recording.wav", data: base64(wav(samples, RATE)), samples, rate: RATE});
      } catch {
        fail(new Error("Nothing was recorded: hold the recording a little longer."));
      }
    });
    recorder.start();
    record.textContent = "■ Stop";
    record.classList.add("on");
    const timer = setTimeout(() => recorder && recorder.stop(), LONGEST * 1000);
  }
  record.addEventListener("click", () => recorder ? recorder.stop() : begin().catch(fail));
  return {element: holder, show};
}

function mono(buffer) {
  const out = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    buffer.getChannelData(channel).forEach((value, i) => { out[i] += value / buffer.numberOfChannels; });
  }
  return out;
}

/** Without the silence before it: a run hears a sound's first moments alone. */
function fromItsBeginning(samples, rate) {
  const peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const first = samples.findIndex(value => Math.abs(value) > QUIET * peak);
  return samples.slice(Math.max(0, first - Math.round(BEFORE * rate)));
}

async function resampled(samples, rate) {
  const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(samples.length * RATE / rate)), RATE);
  const buffer = offline.createBuffer(1, samples.length, rate), source = offline.createBufferSource();
  buffer.copyToChannel(samples, 0);
  source.buffer = buffer;
  source.connect(offline.destination);
  source.start();
  return (await offline.startRendering()).getChannelData(0);
}

/** Samples in [-1, 1] as a WAV of 16 bits (RIFF: Microsoft and IBM 1991). */
function wav(samples, rate) {
  const bytes = new Uint8Array(44 + 2 * samples.length), view = new DataView(bytes.buffer);
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, bytes.length - 8, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, value)) * 32767), true));
  return bytes;
}
