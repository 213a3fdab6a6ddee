// A sound from a file or the microphone: played, shown as a waveform, and sent as WAV.
import {button, fileInput, link} from "./controls.js";
import {base64, fileMessage} from "./server.js";

const MAX_SECONDS = 10;  // of a recording
const SILENCE = 0.06;  // fraction of the peak below which the beginning of a recording is silence
const LEAD_SECONDS = 0.03;  // of silence that are kept
const RATE = 16000;  // of a recording, samples per second
let context = null;
const audio = () => context ??= new AudioContext();

/** The control: `prompt.sound` is `{name, data, samples, rate}` or null. */
export function soundControl(about, change, fail) {
  const open = button("Open", {title: "Open a WAV, FLAC or other sound file"});
  const record = button("● Record"), play = button("▶ Play"), clear = link("clear");
  const input = fileInput("sound-file", "audio/*,.wav,.flac", open, take, fail);
  const wave = make("canvas", {class: "wave", width: 600, height: 96, role: "img"});
  const facts = make("p", {class: "quiet small"});
  const tools = make("div", {class: "tools"}, open, record, play, clear);
  const holder = make("div", {class: "control"}, tools, input, wave, facts);
  let prompt = null, recorder = null;

  function show(other) {
    prompt = other;
    const sound = prompt.sound;
    for (const element of [play, clear, wave]) element.hidden = !sound;
    const length = sound && sound.samples ? `, ${(sound.samples.length / sound.rate).toFixed(2)} s` : "";
    facts.textContent = `${sound ? `${sound.name}${length}. ` : ""}The model hears the first ${about.sound_seconds} s.`;
    if (sound) drawWave(sound);
  }

  function set(sound) {
    prompt.sound = sound;
    show(prompt);
    change();
  }

  function drawWave({samples, rate, name}) {
    const context = wave.getContext("2d"), {width, height} = wave, style = getComputedStyle(wave);
    context.clearRect(0, 0, width, height);
    wave.setAttribute("aria-label", `waveform of ${name}`);
    if (!samples) return;
    const peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);
    const perPixel = samples.length / width;
    const end = Math.min(1, about.sound_seconds * rate / samples.length) * width;
    for (let x = 0; x < width; x += 3) {
      let most = 0;
      for (let i = Math.floor(x * perPixel); i < (x + 2) * perPixel && i < samples.length; i++) {
        most = Math.max(most, Math.abs(samples[i]));
      }
      const tall = Math.max(2, most / peak * (height - 8));
      context.globalAlpha = x < end ? 1 : 0.25;
      context.fillStyle = style.color;
      context.fillRect(x, (height - tall) / 2, 2, tall);
    }
  }

  async function take(file) {
    const message = await fileMessage(file, about.limits.file);
    let decoded = null;
    try {
      decoded = await audio().decodeAudioData(await file.arrayBuffer());
    } catch {
      if (!/\.(wav|flac)$/i.test(file.name)) {
        throw new Error(`${file.name}: is not a sound that this browser can decode; open a WAV or FLAC file`);
      }
    }
    const samples = decoded && mono(decoded), rate = decoded && decoded.sampleRate;
    if (samples && !/\.(wav|flac)$/i.test(file.name)) message.data = base64(wav(samples, rate));
    set({...message, samples, rate});
  }


  clear.addEventListener("click", () => set(null));
  play.addEventListener("click", async () => {
    if (!prompt.sound.samples) return;
    await audio().resume();
    const buffer = audio().createBuffer(1, prompt.sound.samples.length, prompt.sound.rate);
    const source = audio().createBufferSource();
    buffer.copyToChannel(prompt.sound.samples, 0);
    source.buffer = buffer;
    source.connect(audio().destination);
    source.start();
  });

  async function begin() {
    let stream;
    try {
      const track = {channelCount: 1, echoCancellation: false, noiseSuppression: false};
      stream = await navigator.mediaDevices.getUserMedia({audio: track});
    } catch (error) {
      throw new Error(`The microphone is not available (${error.name}). Allow it for this page, or open a file.`);
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
        const samples = await resampled(trimmed(mono(decoded), decoded.sampleRate), decoded.sampleRate);
        set({name: "recording.wav", data: base64(wav(samples, RATE)), samples, rate: RATE});
      } catch {
        fail(new Error("Nothing was recorded. Try a longer recording."));
      }
    });
    recorder.start();
    record.textContent = "■ Stop";
    record.classList.add("on");
    const timer = setTimeout(() => recorder && recorder.stop(), MAX_SECONDS * 1000);
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

/** Cut off the silence at the beginning, since the model hears only the first moments of a sound. */
function trimmed(samples, rate) {
  const peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const first = samples.findIndex(value => Math.abs(value) > SILENCE * peak);
  return samples.slice(Math.max(0, first - Math.round(LEAD_SECONDS * rate)));
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

/** Encode samples in [-1, 1] as 16-bit WAV (RIFF: Microsoft and IBM 1991). */
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
